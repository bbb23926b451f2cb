//! A Cassandra node whose disk is full while a cluster counts on it: the other two of three replicas are a majority, nothing is
//! lost, and the node comes back when there is space again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quipu_tests::services::{SMALL_DISK, Service, Services};
use quipu_tests::{Cluster, Plan, Traffic, within};

/// Batches fill a commit log soon; keyed ones are exact whatever becomes of them.
const LOAD: Plan = Plan { connections: 12, counters: 8, batchers: 2, batch: 500 };
/// Additions of each node between two events.
const STRETCH: u64 = 100;
/// A quarter of it is for the commit log, whose files have 32 MiB.
const DISK_MEBIBYTES: u32 = 512;
/// Until its commit log gets no page any more. Cassandra serves nobody then; that its log is mapped into memory makes it end.
const STOPPED_WITHIN: Duration = Duration::from_secs(180);

#[test]
fn a_full_disk_under_cassandra_loses_nothing() {
    let Some(services) = Services::replicated(None, DISK_MEBIBYTES) else { return };
    let services = Arc::new(services);
    let Some(disk) = services.disk() else { return println!("skipped: no disk is filled") };
    let replica = Service::Cassandra(SMALL_DISK);
    let cluster = Cluster::on(services.clone(), 3);
    let traffic = Traffic::start(&cluster, LOAD);
    traffic.await_each(&cluster.running(), STRETCH);
    let (full, began) = (disk.fill(0), Instant::now());
    within(STOPPED_WITHIN, "the replica stops for want of space", || (!services.listens(replica)).then_some(()));
    println!("a replica stopped {:?} after its disk was full", began.elapsed());
    traffic.await_each(&cluster.running(), STRETCH);
    traffic.expect_no_contradiction();
    drop(full);
    services.kill(replica);
    services.start(replica);
    traffic.await_each(&cluster.running(), STRETCH);
    cluster.await_balance();
    traffic.finish(&cluster);
    cluster.verify();
}
