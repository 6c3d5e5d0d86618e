//! How long the paths take: `cargo bench -p meshd-tests --bench speed`.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use meshd_proto::wire;
use meshd_tests::paths::{Planned, Stored};
use prost::Message as _;

fn records(criterion: &mut Criterion) {
    let stored = Stored::new(100);
    criterion.bench_function("verify a record", |bench| {
        bench.iter(|| stored.verify(black_box(1)).expect("a good record"));
    });
    let frame = stored.frame(100).expect("a frame");
    criterion.bench_function("encode 100 records", |bench| bench.iter(|| frame.encode_to_vec()));
    let bytes = bytes::Bytes::from(frame.encode_to_vec());
    criterion.bench_function("decode 100 records", |bench| {
        bench.iter(|| wire::Frame::decode(bytes.clone()).expect("a frame"));
    });
}

fn directory(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("directory");
    group.sample_size(10);
    for count in [100, 1_000, 10_000] {
        let stored = Stored::new(count);
        group.bench_function(BenchmarkId::new("open", count), |bench| {
            bench.iter(|| stored.open().expect("good records"));
        });
        let mut node = stored.open().expect("good records");
        let mut version = 0;
        group.bench_function(BenchmarkId::new("learn a change", count), |bench| {
            let next = || {
                version += 1;
                (version, stored.change(count / 2, version).expect("a member"))
            };
            bench.iter_batched(
                next,
                |(version, frame)| stored.learn(&mut node, count / 2, version, &frame),
                BatchSize::PerIteration,
            );
        });
    }
}

fn kernel(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("kernel");
    group.sample_size(10);
    for count in [100, 1_000, 10_000] {
        let planned = Planned::new(count).expect("a plan");
        group
            .bench_function(BenchmarkId::new("plan", count), |bench| bench.iter(|| planned.plan()));
        let desired = planned.plan();
        group.bench_function(BenchmarkId::new("diff", count), |bench| {
            bench.iter(|| planned.diff(&desired));
        });
    }
}

criterion_group!(all, records, directory, kernel);
criterion_main!(all);
