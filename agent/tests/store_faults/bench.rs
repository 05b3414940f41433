//! Throwaway.
use crate::history::{open, record};
use sky_agent::store::Store;
use sky_chord::{Key, Write};
use std::time::Instant;

#[test]
fn bench() {
    let n: usize = 1000;
    let a = tempfile::tempdir_in(std::env::var("BENCH_DIR").unwrap_or("/dev/shm".into())).unwrap();
    let b = tempfile::tempdir_in(std::env::var("BENCH_DIR").unwrap_or("/dev/shm".into())).unwrap();
    let (_d, disk) = open(a.path()).unwrap();
    let db = fjall::Database::builder(b.path().join("store")).worker_threads(1).open().unwrap();
    let records = db.keyspace("records", Default::default).unwrap();
    let cpu = || {
        let s = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        s.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let (mut ta, mut tb, mut ca, mut cb) = (0u128, 0u128, 0u64, 0u64);
    for round in 0..20 {
        let (t, c) = (Instant::now(), cpu());
        for i in 0..n {
            disk.write_durably(&[Write::Record(
                Key::new(&format!("{round} {i}")),
                record(vec![7; 100]),
            )])
            .unwrap();
        }
        ta += t.elapsed().as_micros();
        ca += cpu() - c;
        let (t, c) = (Instant::now(), cpu());
        for i in 0..n {
            let mut batch = db.batch().durability(Some(fjall::PersistMode::SyncData));
            batch.insert(
                &records,
                Key::new(&format!("{round} {i}")).to_bytes(),
                record(vec![7; 100]).to_bytes(),
            );
            batch.commit().unwrap();
        }
        tb += t.elapsed().as_micros();
        cb += cpu() - c;
    }
    let total = 20 * n as u128;
    println!(
        "ours {} us, cpu {} ns; plain {} us, cpu {} ns per commit",
        ta / total,
        ca as u128 / total,
        tb / total,
        cb as u128 / total
    );
}
