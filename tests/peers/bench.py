#!/usr/bin/env python3
"""meshd beside other mesh programs, in network namespaces on one bridge.

  bench.py run SYSTEM [SYSTEM..] -n 5 20 50 [--phases cold,steady,join,fail,vanish,dp,restart]
  bench.py list | clean | table

Hosts are namespaces pbh1..pbhN joined by bridge br0 in a namespace of its own (pbbr): nothing is added to the root
namespace, no route leads out. A system is one Driver subclass. PEERS_BASE (/var/tmp/peers-bench) holds state and
results; PEERS_PFX names the namespaces. `tests/bench peers` builds meshd and installs what Debian has of the others.

Phases: cold (always: N daemons are spawned, h1 pings all until each answers; all pairs for N <= 5); steady (30 s idle,
from 40 s or PEERS_SETTLE after the start); join (host N+1 starts, all ping it); dp (iperf3 and ping); restart (1,000 packets/s for 13 s, the daemon gets SIGKILL, in a
second flow SIGTERM, and starts again at once); fail (kill -9 of all on one host) and vanish (its port goes down) until all
others say so in their logs.
"""
import argparse, contextlib, ctypes, fcntl, errno, json, os, re, selectors, signal, socket, statistics, struct
import subprocess, sys, threading, time, shutil, base64

BASE = os.environ.get('PEERS_BASE', '/var/tmp/peers-bench')
BIN = BASE + '/bin'
RUN = BASE + '/run-' + os.environ.get('PEERS_PFX', 'pb')
RESULTS = BASE + '/results.json'
PFX = os.environ.get('PEERS_PFX', 'pb')
libc = ctypes.CDLL(None, use_errno=True)
now = time.monotonic


def sh(cmd, check=True, **kw):
    r = subprocess.run(cmd, shell=isinstance(cmd, str), capture_output=True, text=True, **kw)
    if check and r.returncode:
        raise RuntimeError(f'{cmd}: rc {r.returncode}: {r.stdout[-500:]} {r.stderr[-800:]}')
    return r.stdout


def ns(i): return f'{PFX}h{i}'
def uip(i): return f'172.31.{i // 250}.{i % 250 + 1}'
def oip(i): return f'10.99.{i // 250}.{i % 250 + 1}'


class in_ns:
    """with in_ns(i): sockets made here live in host i's namespace (this thread only)."""
    def __init__(self, i): self.i = i
    def __enter__(self):
        self.old = os.open('/proc/thread-self/ns/net', os.O_RDONLY)
        fd = os.open('/run/netns/' + ns(self.i), os.O_RDONLY)
        if libc.setns(fd, 0x40000000): raise OSError(ctypes.get_errno(), 'setns')
        os.close(fd)
    def __exit__(self, *a):
        libc.setns(self.old, 0x40000000); os.close(self.old)


# ------------------------------------------------------------------ network
class Net:
    def __init__(self, n): self.n = n
    def up(self):
        self.down()
        br = PFX + 'br'
        sh(f'ip netns add {br}; ip -n {br} link add br0 type bridge; '
           f'ip -n {br} link set br0 up addrgenmode none')
        mac = lambda i: f'02:00:00:00:{i >> 8:02x}:{i & 255:02x}'
        for i in range(1, self.n + 1):
            sh(f'ip netns add {ns(i)} && ip link add v{i} netns {br} type veth peer name eth0 address {mac(i)} netns {ns(i)}')
            sh(['ip', '-n', br, '-b', '-'], input=f'link set v{i} addrgenmode none\nlink set v{i} master br0 up\n')
            # permanent neighbours: the kernel's ARP table is one for all namespaces and overflows past
            # gc_thresh3 = 1024 entries (a full mesh of 33 hosts); permanent entries are not counted
            sh(['ip', '-n', ns(i), '-b', '-'], input='link set lo up\nlink set eth0 addrgenmode none\n'
               f'link set eth0 up\naddr add {uip(i)}/16 dev eth0\n' + ''.join(
               f'neigh add {uip(j)} lladdr {mac(j)} dev eth0 nud permanent\n' for j in range(1, self.n + 1) if j != i))
    def down(self):
        for l in sh('ip netns list').split('\n'):
            nm = l.split(' ')[0]
            if re.fullmatch(PFX + r'(h\d+|br)', nm):
                for p in sh(['ip', 'netns', 'pids', nm], check=False).split():
                    try: os.kill(int(p), 9)
                    except OSError: pass
                sh(['ip', 'netns', 'del', nm], check=False)
    def link(self, i, state): sh(f'ip -n {PFX}br link set v{i} {state}')
    def bytes(self):
        """{host: (bytes sent by host, bytes received by host, pkts sent)} on the underlay"""
        out = {}
        for l in json.loads(sh(f'ip -n {PFX}br -s -j link')):
            m = re.fullmatch(r'v(\d+)', l['ifname'])
            if m: s = l['stats64']; out[int(m[1])] = (s['rx']['bytes'], s['tx']['bytes'], s['rx']['packets'])
        return out


def ns_pids(n):
    """{host: [(pid, comm)]} of every process inside the host namespaces"""
    ino = {os.stat('/run/netns/' + ns(i)).st_ino: i for i in range(1, n + 1)}
    out = {i: [] for i in range(1, n + 1)}
    for p in os.listdir('/proc'):
        if p.isdigit():
            try:
                h = ino.get(os.stat(f'/proc/{p}/ns/net').st_ino)
                if h: out[h].append((int(p), open(f'/proc/{p}/comm').read().strip()))
            except OSError: pass
    return out


# ------------------------------------------------------------------ driver base
class Driver:
    name = '?'
    overlay = True          # has a data plane
    patterns = []           # [(kind, regex; group 1 = peer key)] matched on the daemon's output
    dp_comms = ('wireguard-go', 'boringtun-cli')   # processes counted as data plane, not control
    fail_traffic = False    # failure is only noticed with traffic to the victim
    limit = 90              # s, for cold start and join
    fail_limit = 90         # s, for the failure phases
    control = True          # False: static configuration, no join or failure notion
    default_route = False   # wants some default route (a dead one is given)
    term = signal.SIGTERM   # graceful stop
    flow_secs = 13          # s, length of the restart flow
    def __init__(self, net):
        self.net = net; self.n = net.n  # hosts 1..n-1 are the cold-start set, n is the newcomer
        self.dir = f'{RUN}/{self.name}'; self.procs = {}; self.events = []
        shutil.rmtree(self.dir, ignore_errors=True); os.makedirs(self.dir)
        self.sel = selectors.DefaultSelector(); self.lock = threading.Lock(); self.stopping = False
        self.pats = [(k, re.compile(r.encode())) for k, r in self.patterns]
        threading.Thread(target=self._reader, daemon=True).start()
    # --- to be given by a system
    def version(self): return '?'
    def config(self): return ''
    def prepare(self): pass
    def start(self, h): raise NotImplementedError
    def overlay_addr(self, h): return oip(h)
    def key(self, h): return f'h{h}'      # how h is named in the daemon's log lines
    def ready(self, h): return h in self.procs and self.procs[h].poll() is None
    def before_fail(self): pass
    # --- helpers
    def hdir(self, h):
        d = f'{self.dir}/h{h}'; os.makedirs(d, exist_ok=True); return d
    def spawn(self, h, argv, main=True, binds=(), env=None):
        """run argv inside host h; binds = [(dir, over)] private bind mounts"""
        pre = ''.join(f'mount --bind {a} {b}; ' for a, b in binds)
        cmd = ['ip', 'netns', 'exec', ns(h)]
        cmd += ['sh', '-c', pre + 'exec "$@"', 'sh'] + argv if pre else argv
        p = subprocess.Popen(cmd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             env={**os.environ, **(env or {})}, start_new_session=True)
        os.set_blocking(p.stdout.fileno(), False)
        with self.lock: self.sel.register(p.stdout, selectors.EVENT_READ, [h, b'', open(f'{self.hdir(h)}/log', 'ab')])
        if main: self.procs[h] = p
        return p
    def _reader(self):
        while not self.stopping:
            if not self.sel.get_map(): time.sleep(.02); continue
            for k, _ in self.sel.select(.2):
                t = now(); d = k.data
                try: b = os.read(k.fileobj.fileno(), 65536)
                except BlockingIOError: continue
                if not b:
                    with self.lock: self.sel.unregister(k.fileobj)
                    d[2].close(); continue
                d[2].write(b); d[2].flush()
                lines = (d[1] + b).split(b'\n'); d[1] = lines.pop()
                for l in lines:
                    for kind, r in self.pats:
                        m = r.search(l)
                        if m: self.events.append((t, d[0], kind, m[1].decode()))
    def stop(self, h, sig=None):
        sig = self.term if sig in (None, signal.SIGTERM) else sig
        p = self.procs.pop(h, None)
        if p:
            p.send_signal(sig)
            try: p.wait(15)
            except subprocess.TimeoutExpired: p.kill(); p.wait()
    def crash(self, h): self.stop(h, signal.SIGKILL)      # whole host dies (kill -9 of everything)
    def close(self):
        for h in list(self.procs): self.procs[h].kill()
        self.net.down(); self.stopping = True
    def seen(self, kind, peer, since):
        out = {}
        for t, h, k, p in list(self.events):
            if k == kind and p == peer and t >= since and h not in out: out[h] = t - since
        return out


# ------------------------------------------------------------------ systems
class Nebula(Driver):
    name = 'nebula'; fail_traffic = True; fail_limit = 45
    patterns = [('fail', r'Tunnel status.*certName=(\w+).*state:dead')]
    def version(self): return sh(['nebula', '-version']).strip()
    def config(self): return 'Debian pkg; 1 lighthouse (h1), lighthouse.interval 10, punchy on, cipher aes, mtu 1300, fw allow all, log info'
    def prepare(self):
        d = self.dir
        sh(f'nebula-cert ca -name bench -out-crt {d}/ca.crt -out-key {d}/ca.key')
        for h in range(1, self.n + 1):
            sh(f'nebula-cert sign -ca-crt {d}/ca.crt -ca-key {d}/ca.key -name h{h} -ip {oip(h)}/16 '
               f'-out-crt {self.hdir(h)}/h.crt -out-key {self.hdir(h)}/h.key')
            lh = h == 1
            open(f'{self.hdir(h)}/c.yml', 'w').write(f'''
pki: {{ca: {d}/ca.crt, cert: {d}/h{h}/h.crt, key: {d}/h{h}/h.key}}
static_host_map: {{"{oip(1)}": ["{uip(1)}:4242"]}}
lighthouse: {{am_lighthouse: {str(lh).lower()}, interval: 10, hosts: [{'' if lh else '"' + oip(1) + '"'}]}}
listen: {{host: 0.0.0.0, port: 4242}}
punchy: {{punch: true}}
tun: {{dev: nebula1, mtu: 1300}}
logging: {{level: info, format: text}}
firewall: {{outbound: [{{port: any, proto: any, host: any}}], inbound: [{{port: any, proto: any, host: any}}]}}
''')
    def start(self, h): self.spawn(h, ['nebula', '-config', f'{self.hdir(h)}/c.yml'])


class Tinc(Driver):
    name = 'tinc'
    def version(self): return sh(['tincd', '--version']).split('\n')[0]
    def config(self): return 'Debian pkg; router mode, RSA 2048, default cipher/digest, ConnectTo h1+h2, PingInterval 60 (default)'
    def prepare(self):
        keys = BASE + '/run/tinckeys'; os.makedirs(keys, exist_ok=True)
        for h in range(1, self.n + 1):
            d = self.hdir(h); os.makedirs(d + '/hosts', exist_ok=True)
            k = f'{keys}/{h}'
            if not os.path.exists(k + '.pub'):
                sh(f'openssl genrsa -traditional -out {k} 2048 && openssl rsa -in {k} -RSAPublicKey_out -out {k}.pub')
            shutil.copy(k, d + '/rsa_key.priv'); os.chmod(d + '/rsa_key.priv', 0o600)
            ct = ''.join(f'ConnectTo = h{s}\n' for s in (1, 2) if s != h and s <= self.n and not (h == 1))
            open(d + '/tinc.conf', 'w').write(f'Name = h{h}\nAddressFamily = ipv4\nInterface = vpn\n{ct}')
            open(d + '/tinc-up', 'w').write(f'#!/bin/sh\nip addr add {oip(h)}/16 dev vpn\nip link set vpn up\n')
            os.chmod(d + '/tinc-up', 0o755)
        for h in range(1, self.n + 1):
            for p in range(1, self.n + 1):
                open(f'{self.hdir(h)}/hosts/h{p}', 'w').write(
                    f'Address = {uip(p)}\nSubnet = {oip(p)}/32\n' + open(f'{keys}/{p}.pub').read())
    def start(self, h):
        d = self.hdir(h); self.spawn(h, ['tincd', '-c', d, '-D', '-d', '1', f'--pidfile={d}/pid'])
    def before_fail(self):
        for h in range(1, self.n + 1):
            f = self.hdir(h) + '/host-down'
            open(f, 'w').write(f'#!/bin/sh\necho "$(date +%s.%N) $NODE" >> {self.hdir(h)}/down\n'); os.chmod(f, 0o755)
    def seen(self, kind, peer, since):
        off = time.time() - now(); out = {}
        for h in range(1, self.n + 1):
            try:
                for l in open(self.hdir(h) + '/down'):
                    t, p = l.split()
                    if p == peer and float(t) - off >= since - .01: out.setdefault(h, float(t) - off - since)
            except (OSError, ValueError): pass
        return out


class VpnCloud(Driver):
    name = 'vpncloud'; default_route = True; fail_limit = 20
    patterns = [('fail', r'(?:Forgot|Removing|Closing|Timeout|timed out|Lost).*?(172\.31\.\d+\.\d+)')]
    def key(self, h): return uip(h)
    def version(self): return sh([BIN + '/vpncloud', '--version']).strip()
    def config(self): return 'crates.io; tun/normal mode, shared password, peers h1+h2, peer-timeout 300 (default), no port forwarding'
    def start(self, h):
        peers = sum((['-c', f'{uip(s)}:3210'] for s in (1, 2) if s != h and s <= self.n), [])
        up = f'ip addr add {oip(h)}/16 dev vpn0; ip link set vpn0 mtu 1427 up'   # its own --ip sets a wrong address
        self.spawn(h, [BIN + '/vpncloud', '--no-port-forwarding', '-d', 'vpn0', '-t', 'tun', '-l', '3210', '--ifup', up,
                       '--claim', oip(h) + '/32', '-p', 'benchpassword'] + peers)


class WgStatic(Driver):
    """no control plane at all: the userspace WireGuard data plane with a static full mesh"""
    name = 'wg-static'; control = False; flow_secs = 30; argv = ['wireguard-go', '-f', 'wg0']
    def version(self): return 'wireguard-go 0.0.20220316, wg ' + sh(['wg', '--version']).split()[1]
    def config(self): return 'static full mesh set with wg setconf, mtu 1420'
    def prepare(self):
        self.k = {h: sh('wg genkey').strip() for h in range(1, self.n + 1)}
        self.p = {h: sh(['wg', 'pubkey'], input=k).strip() for h, k in self.k.items()}
        for h in self.k:
            os.makedirs(self.hdir(h) + '/run', exist_ok=True)
            open(f'{self.hdir(h)}/wg.conf', 'w').write(f'[Interface]\nPrivateKey={self.k[h]}\nListenPort=51820\n' + ''.join(
                f'[Peer]\nPublicKey={self.p[q]}\nEndpoint={uip(q)}:51820\nAllowedIPs={oip(q)}/32\n' for q in self.k if q != h))
    def start(self, h):
        b = [(f'{self.hdir(h)}/run', '/run')]
        s = f'{self.hdir(h)}/run/wireguard/wg0.sock'
        if os.path.exists(s): os.unlink(s)
        self.spawn(h, self.argv, binds=b, env={'LOG_LEVEL': 'error', 'WG_PROCESS_FOREGROUND': '1'})
        self.spawn(h, ['sh', '-c', 'while [ ! -S /run/wireguard/wg0.sock ]; do sleep .01; done; '
                       f'wg setconf wg0 {self.hdir(h)}/wg.conf; ip addr add {oip(h)}/16 dev wg0; ip link set wg0 mtu 1420 up'],
                   main=False, binds=b)


class BoringTun(WgStatic):
    name = 'boringtun-static'; argv = [BIN + '/boringtun-cli', '-f', '--disable-drop-privileges', 'wg0']
    def version(self): return 'boringtun-cli 0.7.1 (crates.io), wg ' + sh(['wg', '--version']).split()[1]


class Innernet(Driver):
    name = 'innernet'; interval = 60; limit = 200
    def version(self): return 'innernet 2.0.0 + innernet-server 2.0.0 (crates.io), --backend userspace = wireguard-go 0.0.20220316'
    def config(self): return f'server on h1, one CIDR, each client: install invite, then up -d --interval {self.interval} (60 = default), mtu 1280 default'
    def overlay_addr(self, h): return '10.66.0.1' if h == 1 else f'10.66.1.{h}'
    def binds(self, h):
        out = []
        for s, o in (('run', '/run'), ('lib', '/var/lib')): 
            os.makedirs(f'{self.hdir(h)}/{s}', exist_ok=True); out.append((f'{self.hdir(h)}/{s}', o))
        return out
    def cd(self, h): return ['-c', f'{self.hdir(h)}/etc', '-d', f'{self.hdir(h)}/data']
    def srv(self, *a):
        p = self.spawn(1, [BIN + '/innernet-server', '--backend', 'userspace'] + self.cd(1) + list(a), main=False, binds=self.binds(1))
        p.wait(20)
    def prepare(self):
        self.srv('new', '--network-name', 'bench', '--network-cidr', '10.66.0.0/16', '--external-endpoint', f'{uip(1)}:51820', '--listen-port', '51820')
        self.srv('add-cidr', 'bench', '--name', 'hosts', '--cidr', '10.66.1.0/24', '--parent', 'bench', '--yes')
        for h in range(2, self.n + 1):
            self.srv('add-peer', 'bench', '--name', f'h{h}', '--cidr', 'hosts', '--admin', 'false', '--ip', f'10.66.1.{h}',
                     '--save-config', f'{self.dir}/inv{h}.toml', '--invite-expires', '30d', '--yes')
    def start(self, h):
        e = {'WG_USERSPACE_IMPLEMENTATION': 'wireguard-go'}   # with LOG_LEVEL set wireguard-go keeps the pipe open and innernet hangs
        if h == 1:
            self.spawn(h, [BIN + '/innernet-server', '--backend', 'userspace'] + self.cd(1) + ['serve', '--backend', 'userspace', '--no-write-hosts', 'bench'], binds=self.binds(h), env=e)
            return
        inn = f'{BIN}/innernet --backend userspace ' + ' '.join(self.cd(h))
        self.spawn(h, ['sh', '-c', f'while ! {inn} install --name bench --delete-invite --no-write-hosts {self.dir}/inv{h}.toml && [ ! -e {self.hdir(h)}/etc/bench.conf ]; do sleep .5; done; '
                       f'exec {inn} up -d --interval {self.interval} --no-write-hosts bench'], binds=self.binds(h), env=e)


class Serf(Driver):
    name = 'serf'; overlay = False; profile = 'lan'; term = signal.SIGINT
    patterns = [('join', r'EventMemberJoin: (h\d+) '), ('fail', r'EventMemberFailed: (h\d+) ')]
    exe = shutil.which('serf') or 'serf'
    def version(self): return 'Debian serf 0.9.4~ds1-1+b13 (prints ' + sh([self.exe, 'version']).split('\n')[0] + ')'
    def config(self): return f'-profile={self.profile}, -encrypt, retry-join h1,h2 every 1 s'
    def start(self, h):
        j = [f'-retry-join={uip(s)}' for s in (1, 2) if s != h and s <= self.n]
        if h == 1 and not getattr(self, 'running', False): j = []
        self.spawn(h, [self.exe, 'agent', f'-bind={uip(h)}:7946', f'-node=h{h}', f'-profile={self.profile}', '-log-level=info',
                       '-retry-interval=1s', '-encrypt=' + base64.b64encode(b'k' * 32).decode()] + j)


class SerfWan(Serf):
    name = 'serf-wan'; profile = 'wan'


class Meshd(Driver):
    """what this repository builds; MESHD_BIN_DIR says where (release)"""
    name = 'meshd'; fail_limit = 30
    patterns = [('fail', r'code="member_down".* name="(h\d+)"')]
    bin = os.environ.get('MESHD_BIN_DIR', os.path.join(os.path.dirname(os.path.abspath(__file__)), '../../target/release'))
    def version(self): return sh([self.bin + '/meshd', '--version']).strip() + ', ' + self.device()
    def device(self):
        if self.kernel(): return 'kernel WireGuard'
        return 'wireguard-go ' + re.sub(r'-.*', '', sh(['dpkg-query', '-Wf', '${Version}', 'wireguard-go'], check=False))
    @staticmethod
    def kernel():
        return subprocess.run('ip link add pbtry type wireguard && ip link del pbtry', shell=True, capture_output=True).returncode == 0
    def config(self): return 'identities issued off-line by h1 (`cert issue`), seed h1, default configuration'
    def binds(self, h):
        os.makedirs(f'{self.hdir(h)}/run/meshd', exist_ok=True); os.makedirs(f'{self.hdir(h)}/run/wireguard', exist_ok=True)
        return [(f'{self.hdir(h)}/run', '/run')]
    def ctl(self, h, *a):
        return sh([self.bin + '/meshctl', '--socket', f'{self.hdir(h)}/run/meshd/meshd.sock', *a])
    def prepare(self):
        backend = 'kernel' if self.kernel() else 'userspace'
        for h in range(1, self.n + 1):
            d = self.hdir(h); os.makedirs(d + '/etc', exist_ok=True)
            open(d + '/etc/meshd.toml', 'w').write(
                f'[node]\nname = "h{h}"\nstate_dir = "{d}/lib"\n[wireguard]\nbackend = "{backend}"\n[network]\npod_prefixes = []\n')
        self.start(1); end = now() + 20
        while True:
            try: self.ctl(1, 'init', '--mesh', 'bench'); break
            except RuntimeError:
                if now() > end: raise
                time.sleep(.05)
        v4 = lambda shown: next(a for a in shown['mesh_addresses'] if ':' not in a)
        self.addr = {1: v4(json.loads(self.ctl(1, 'status', '-o', 'json')))}
        for h in range(2, self.n + 1):
            out = self.hdir(h) + '/etc/identity'
            issued = json.loads(self.ctl(1, 'cert', 'issue', '--name', f'h{h}', '--out', out, '--seed', f'{uip(1)}:51800', '-o', 'json'))
            self.addr[h] = v4(issued)
        self.crash(1)
    def overlay_addr(self, h): return self.addr[h]
    def start(self, h):
        unit = {'MALLOC_ARENA_MAX': '1', 'MALLOC_TRIM_THRESHOLD_': '131072'}  # as meshd.service sets it
        self.spawn(h, [self.bin + '/meshd', '--config', f'{self.hdir(h)}/etc/meshd.toml'], binds=self.binds(h), env=unit)
    def crash(self, h):
        """the device's process (its own session) goes too; a kernel device stays as a host's would not: it is deleted"""
        self.stop(h, signal.SIGKILL)
        for p in sh(['ip', 'netns', 'pids', ns(h)], check=False).split():
            try: os.kill(int(p), 9)
            except OSError: pass
        sh(['ip', '-n', ns(h), 'link', 'del', 'mesh0'], check=False)


DRIVERS = {c.name: c for c in (Meshd, Nebula, Tinc, VpnCloud, Innernet, WgStatic, BoringTun, Serf, SerfWan)}


# ------------------------------------------------------------------ measuring
def cksum(b):
    s = sum(struct.unpack(f'!{len(b) // 2}H', b)); s = (s >> 16) + (s & 0xffff); return ~(s + (s >> 16)) & 0xffff


class Prober:
    """ICMP echo from many namespaces out of one thread; sockets are made once per source."""
    def __init__(self, d): self.d = d; self.s = {}
    def sock(self, i):
        if i not in self.s:
            with in_ns(i): s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
            s.setsockopt(255, 1, struct.pack('I', 0xffffffff & ~1)); s.setblocking(False); self.s[i] = s
        return self.s[i]
    def reach(self, pairs, t0, interval, limit, until=None):
        """first reply time - t0 for each (src,dst); until(done) may end it early"""
        tok = os.urandom(4); sel = selectors.DefaultSelector(); addr = {}; done = {}; sent = 0
        for a, b in pairs:
            if a not in addr: sel.register(self.sock(a), selectors.EVENT_READ, a)
            addr[a] = 1
        dst = {b: self.d.overlay_addr(b) for _, b in pairs}
        q = [(now() + interval * k / len(pairs), p) for k, p in enumerate(pairs)]; seq = 0
        from collections import deque
        q = deque(q)
        while len(done) < len(pairs) and now() - t0 < limit:
            while q and q[0][0] <= now():
                t, p = q.popleft()
                if p in done: continue
                seq = seq + 1 & 0xffff
                body = tok + struct.pack('!HH', *p) + b'x' * 24
                hdr = struct.pack('!BBHHH', 8, 0, 0, 0x5000 + p[0], seq)
                hdr = struct.pack('!BBHHH', 8, 0, cksum(hdr + body), 0x5000 + p[0], seq)
                try: self.sock(p[0]).sendto(hdr + body, (dst[p[1]], 0))
                except OSError: pass
                q.append((max(t + interval, now()), p))
            w = max(0, min(.05, q[0][0] - now())) if q else .05
            for k, _ in sel.select(w):
                t = now()
                while True:
                    try: b = k.fileobj.recv(2048)
                    except OSError: break
                    b = b[(b[0] & 15) * 4:]
                    if len(b) >= 16 and b[0] == 0 and b[8:12] == tok:
                        p = struct.unpack('!HH', b[12:16])
                        if p not in done: done[p] = t - t0
            if until and until(done): break
        sel.close()
        return done


def summ(v, total=None):
    v = sorted(v)
    if not v: return {'n': 0, 'of': total}
    return {'n': len(v), 'of': total or len(v), 'p50': round(statistics.median(v), 3), 'max': round(v[-1], 3), 'min': round(v[0], 3)}


def log(*a): print(time.strftime('%H:%M:%S'), *a, file=sys.stderr, flush=True)


@contextlib.contextmanager
def lock(name):
    with open(f'{BASE}/{name}.lock', 'w') as f:
        fcntl.flock(f, fcntl.LOCK_EX); yield


def save(rec):
    with lock('results'): _save(rec)


def _save(rec):
    rec['load1'] = os.getloadavg()[0]; rec['at'] = time.strftime('%F %T')
    try: r = json.load(open(RESULTS))
    except Exception: r = []
    r.append(rec); json.dump(r, open(RESULTS + '.tmp', 'w'), indent=1); os.rename(RESULTS + '.tmp', RESULTS)
    log(json.dumps({k: v for k, v in rec.items() if k not in ('version', 'config', 'raw')}))


def stat(pids):
    cpu = rss = pss = 0
    for p, _ in pids:
        try:
            f = open(f'/proc/{p}/stat').read().rsplit(')', 1)[1].split(); cpu += int(f[11]) + int(f[12])
            for l in open(f'/proc/{p}/status'):
                if l.startswith('VmRSS'): rss += int(l.split()[1])
            for l in open(f'/proc/{p}/smaps_rollup'):
                if l.startswith('Pss:'): pss += int(l.split()[1])
        except OSError: pass
    return cpu / os.sysconf('SC_CLK_TCK'), rss, pss


class Bench:
    def __init__(self, cls, n, phases):
        self.cls, self.n, self.ph = cls, n, phases
    def rec(self, phase, **kw): save({'system': self.d.name, 'version': self.ver, 'config': self.d.config(), 'N': self.n, 'phase': phase, **kw})
    def run(self):
        self.net = Net(self.n + 1); self.net.up()
        try:
            if self.cls.default_route:
                for i in range(1, self.n + 2): sh(f'ip -n {ns(i)} route add default via 172.31.255.254')
            self.d = d = self.cls(self.net); self.ver = d.version(); d.prepare(); self.pr = Prober(d)
            with lock('cpu'): self.cold()    # lanes may run side by side; CPU-bound phases take turns
            d.running = True
            for p in ('steady', 'join', 'dp', 'restart', 'fail', 'vanish'):
                if p in self.ph:
                    try:
                        with lock('cpu') if p in ('join', 'dp', 'restart') else contextlib.nullcontext(): getattr(self, p)()
                    except Exception as e: self.rec(p, error=repr(e)[:400])
        finally:
            if hasattr(self, 'd'): self.d.close()
            else: self.net.down()
    def members_wait(self, kind, want, since, limit):
        """gossip only: wait for events; want = {(observer, peer key)}; returns times"""
        got = {}
        while now() - since < limit and len(got) < len(want):
            for t, h, k, p in list(self.d.events):
                if k == kind and t >= since and (h, p) in want: got.setdefault((h, p), t - since)
            time.sleep(.02)
        return got
    def cold(self):
        d, n = self.d, self.n; t0 = now()
        for h in range(1, n + 1): d.start(h)
        ts = now() - t0; H = range(1, n + 1)
        if not d.overlay:
            want = {(a, d.key(b)) for a in H for b in H if a != b}
            g = self.members_wait('join', want, t0, d.limit)
            return self.rec('cold', spawn_s=round(ts, 3), one=summ([v for (a, _), v in g.items() if a == 1], n - 1), all=summ(g.values(), len(want)))
        one = [(1, b) for b in H if b != 1]
        if n <= 5:
            pairs = [(a, b) for a in H for b in H if a != b]
            g = self.pr.reach(pairs, t0, .05, d.limit)
            r = {'one': summ([v for p, v in g.items() if p[0] == 1], n - 1), 'all': summ(g.values(), len(pairs))}
        else:
            g = self.pr.reach(one, t0, .1, d.limit); r = {'one': summ(g.values(), n - 1)}
        miss = [b for _, b in one if (1, b) not in g]
        self.rec('cold', spawn_s=round(ts, 3), missing=miss[:10], **r)
        if n > 5 and 'all' in self.ph:
            pairs = [(a, b) for a in H for b in H if a != b]
            g = self.pr.reach(pairs, t0, len(pairs) / 800, d.limit); self.rec('cold-all', all=summ(g.values(), len(pairs)))
    def steady(self, secs=30):
        time.sleep(float(os.environ.get('PEERS_SETTLE', 40))); P = ns_pids(self.n); d = self.d   # hosts 1..N only
        ctl = {h: [x for x in v if x[1] not in d.dp_comms] for h, v in P.items()}
        dp = {h: [x for x in v if x[1] in d.dp_comms] for h, v in P.items()}
        a = {h: (stat(ctl[h]), stat(dp[h])) for h in P}; b0 = self.net.bytes(); t0 = now()
        time.sleep(secs)
        b1 = self.net.bytes(); t = now() - t0; b = {h: (stat(ctl[h]), stat(dp[h])) for h in P}
        f = lambda v: {'mean': round(statistics.mean(v), 2), 'max': round(max(v), 2), 'h1': round(v[0], 2)}
        H = sorted(P)
        self.rec('steady', secs=round(t, 1), ctl_rss_kb=f([b[h][0][1] for h in H]), ctl_pss_kb=f([b[h][0][2] for h in H]), dp_rss_kb=f([b[h][1][1] for h in H]),
                 ctl_cpu_pct=f([(b[h][0][0] - a[h][0][0]) / t * 100 for h in H]), dp_cpu_pct=f([(b[h][1][0] - a[h][1][0]) / t * 100 for h in H]),
                 tx_Bps=f([(b1[h][0] - b0[h][0]) / t for h in H]), rx_Bps=f([(b1[h][1] - b0[h][1]) / t for h in H]), tx_pps=f([(b1[h][2] - b0[h][2]) / t for h in H]))
    def settle(self, h, limit=60):
        """wait until h is reachable from all again (or known to all)"""
        if self.d.overlay: self.pr.reach([(a, h) for a in range(1, self.n + 1) if a != h], now(), .3, limit)
        else: time.sleep(5)
    def join(self):
        """host N+1 starts for the first time while hosts 1..N run"""
        d = self.d; n = self.n + 1
        if not d.control: return
        t0 = now(); d.start(n); H = range(1, n)
        if not d.overlay:
            want = {(a, d.key(n)) for a in H}; g = self.members_wait('join', want, t0, d.limit)
            g2 = self.members_wait('join', {(n, d.key(a)) for a in H}, t0, d.limit)
            return self.rec('join', reached=summ(g.values(), n - 1), newcomer_knows_all=summ(g2.values(), n - 1))
        g = self.pr.reach([(a, n) for a in H], t0, .05 if n <= 20 else .1, d.limit)
        self.rec('join', reached=summ(g.values(), n - 1))
    def fail(self, vanish=False):
        d = self.d; n = self.n + 1
        if not d.control: return
        if n not in d.procs: d.start(n); self.settle(n, 30)
        d.before_fail()
        if d.fail_traffic:
            g = self.pr.reach([(a, n) for a in range(1, n)], now(), .3, 30)
        t0 = now(); lim = d.fail_limit
        if vanish: self.net.link(n, 'down')
        else: d.crash(n)
        if d.fail_traffic: self.pr.reach([(a, n) for a in range(1, n)], t0, 1, lim, until=lambda _: len(d.seen('fail', d.key(n), t0)) >= n - 1)
        while now() - t0 < lim:
            s = {h: v for h, v in d.seen('fail', d.key(n), t0).items() if h != n}
            if len(s) >= n - 1: break
            time.sleep(.05)
        self.rec('vanish' if vanish else 'fail', marked=summ(s.values(), n - 1), limit=lim)
        if vanish: self.net.link(n, 'up')
        else: d.start(n)
        self.settle(n, 30)
    def vanish(self): self.fail(True)
    def iperf(self, a, b, addr, secs=4):
        return self.iperf1(a, b, addr, secs) or self.iperf1(a, b, addr, secs)
    def iperf1(self, a, b, addr, secs):
        s = subprocess.Popen(['ip', 'netns', 'exec', ns(b), 'iperf3', '-s', '-1'], stdout=subprocess.DEVNULL)
        time.sleep(.4)
        o = sh(['timeout', str(secs + 6), 'ip', 'netns', 'exec', ns(a), 'iperf3', '--connect-timeout', '3000', '-c', addr, '-t', str(secs), '-J'], check=False)
        try: s.wait(5)
        except subprocess.TimeoutExpired: s.kill(); s.wait()
        try: return round(json.loads(o)['end']['sum_received']['bits_per_second'] / 1e6, 1)
        except Exception: return None
    def ping(self, a, addr, c=300):
        o = sh(['ip', 'netns', 'exec', ns(a), 'ping', '-q', '-c', str(c), '-i', '0.01', '-W', '1', addr], check=False)
        m = re.search(r'= ([\d.]+)/([\d.]+)/([\d.]+)/([\d.]+)', o); l = re.search(r'([\d.]+)% packet loss', o)
        return {'min_ms': float(m[1]), 'avg_ms': float(m[2]), 'max_ms': float(m[3]), 'mdev_ms': float(m[4]), 'loss_pct': float(l[1])} if m else None
    def dp(self):
        d = self.d
        if not d.overlay: return
        a, b = 3, 2; o = d.overlay_addr(b); self.pr.reach([(a, b)], now(), .2, 30)
        pl, ov = [], []
        for _ in range(2): pl.append(self.iperf(a, b, uip(b))); ov.append(self.iperf(a, b, o))
        self.rec('dp', plain_mbps=pl, overlay_mbps=ov, plain_ping=self.ping(a, uip(b)), overlay_ping=self.ping(a, o))
    def restart(self):
        if self.d.overlay:
            for how, sig in (('SIGKILL', signal.SIGKILL), ('SIGTERM', signal.SIGTERM)): self.flow(how, sig)
    def flow(self, how, sig, secs=None, pps=1000, at=3):
        """1000 pps UDP h3 -> h2 while h2's daemon is killed and at once started again"""
        d = self.d; secs = secs or d.flow_secs; a, b = 3, 2; self.pr.reach([(a, b)], now(), .2, 30)
        with in_ns(b): rx = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); rx.bind(('0.0.0.0', 9999)); rx.settimeout(.2)
        with in_ns(a): tx = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        rx.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        got = {}; tsent = []; end = threading.Event(); dst = (d.overlay_addr(b), 9999)
        def rxl():
            while not end.is_set():
                try: m = rx.recv(2000)
                except OSError: continue
                got.setdefault(struct.unpack('!I', m[:4])[0], now())
        def txl():
            t0 = now()
            for s in range(secs * pps):
                w = t0 + s / pps - now()
                if w > 0: time.sleep(w)
                tsent.append(now())
                try: tx.sendto(struct.pack('!I', s) + b'x' * 60, dst)
                except OSError: pass
        r = threading.Thread(target=rxl); t = threading.Thread(target=txl); r.start(); t.start()
        time.sleep(at); tk = now(); d.stop(b, sig); ts = now(); d.start(b); t.join(); time.sleep(1); end.set(); r.join()
        pre = sum(1 for s, x in enumerate(tsent) if x < tk - .2 and s not in got)
        lost = sum(1 for s in range(len(tsent)) if s not in got) - pre
        after = [x for x in got.values() if x > ts]; ks = sorted(got.values()); gap = max((y - x for x, y in zip(ks, ks[1:])), default=None)
        self.rec('restart', how=how, sent=len(tsent), lost=lost, lost_before=pre, longest_gap_s=round(gap, 3) if gap else None,
                 stop_s=round(ts - tk, 3), recovered=bool(after and max(after) > now() - 3))
        tx.close(); rx.close(); self.settle(b, 60)


def table():
    for r in json.load(open(RESULTS)):
        print(json.dumps({k: v for k, v in r.items() if k not in ('version', 'config', 'at')}))


def main():
    ap = argparse.ArgumentParser(); ap.add_argument('cmd'); ap.add_argument('systems', nargs='*')
    ap.add_argument('-n', nargs='+', type=int, default=[5]); ap.add_argument('--phases', default='')
    a = ap.parse_args()
    if a.cmd == 'list': print(*DRIVERS, sep='\n')
    elif a.cmd == 'clean': Net(0).down()
    elif a.cmd == 'table': table()
    elif a.cmd == 'run':
        for s in a.systems:
            for n in a.n:
                ph = a.phases or ('steady,join,dp,restart,fail,vanish' if n <= 5 else 'steady,join,fail')
                log('==', s, 'N', n, ph)
                try: Bench(DRIVERS[s], n, ph.split(',')).run()
                except Exception as e:
                    import traceback; traceback.print_exc(); save({'system': s, 'N': n, 'phase': 'aborted', 'error': repr(e)[:500]})


if __name__ == '__main__': main()
