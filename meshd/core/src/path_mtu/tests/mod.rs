mod properties;
mod transitions;
mod world;
