//! Several nodes on a real etcd and a real Cassandra. Without them each test says `skipped`.

mod clocks;
mod counting;
mod disk;
mod faults;
mod panics;
mod partitions;
mod policies;
mod secured;
mod services;
mod torture;
