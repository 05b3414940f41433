//! How long keys are silent after one node of a right ring ends or falls asleep, in virtual time: what the
//! protocol needs, without what machines and networks add.

use std::collections::BTreeMap;
use std::time::Duration;

use sky_chord::{Answer, Condition, Reply, Request, RequestId, Settings, Time};

use crate::sim::cluster::{Cluster, Step};
use crate::sim::workload::get;
use crate::targeted::{key, put, write_keys};

/// How many nodes there are, and keys that are asked for all the time.
const NODES: usize = 5;
const KEYS: usize = 10;
/// How long a client pauses between two requests.
const PAUSE: Duration = Duration::from_millis(100);

/// Gets or sets one key, a request after the other, each through another node.
struct Client {
    key: usize,
    reads: bool,
    /// The last success, or the fault, if that came later.
    last: Time,
    /// The longest time without a success.
    silent: Duration,
}

/// The longest silence of any client, from the fault on.
fn longest_silence(seed: u64, fault: fn(&mut Cluster, usize)) -> Duration {
    let mut cluster = Cluster::ring(seed, Settings::default(), NODES);
    write_keys(&mut cluster, KEYS);
    let client = |number| Client {
        key: number / 2,
        reads: number % 2 == 0,
        last: cluster.now,
        silent: Duration::ZERO,
    };
    let mut clients: Vec<Client> = (0..2 * KEYS).map(client).collect();
    for number in 0..clients.len() {
        cluster.alarm(PAUSE * number as u32 / clients.len() as u32, number as u64);
    }
    let (begun, mut is_well) = (cluster.now, true);
    let (mut asked, mut count) = (BTreeMap::new(), 0);
    while cluster.now < begun + Duration::from_secs(10) {
        if is_well && cluster.now >= begun + Duration::from_secs(2) {
            is_well = false;
            let victim = seed as usize % NODES;
            fault(&mut cluster, victim);
            // Nobody waits for an agent that has stopped while it had the request.
            for number in asked.extract_if(.., |_, (_, machine)| *machine == victim) {
                cluster.alarm(PAUSE, number.1.0);
            }
            for client in &mut clients {
                (client.last, client.silent) = (cluster.now, Duration::ZERO);
            }
        }
        if let Step::Alarm(number) = cluster.step() {
            let client = &clients[number as usize];
            let machines = cluster.awake();
            let machine = machines[count % machines.len()];
            count += 1;
            let operation = match client.reads {
                true => get(&key(client.key)),
                false => put(&key(client.key), count, Condition::Always),
            };
            let id = RequestId::at(cluster.wall(machine), count as u64);
            let budget = Duration::from_secs(5);
            let request = Request::Operate { id, retry: false, operation, budget };
            asked.insert(cluster.request(machine, request), (number, machine));
        }
        for (ticket, reply) in cluster.take_finished() {
            let Some((number, _)) = asked.remove(&ticket) else { continue };
            let client = &mut clients[number as usize];
            if let Some(Reply::Operated(Ok(Answer::Found { .. } | Answer::Stored { .. }))) = reply {
                client.silent = client.silent.max(cluster.now.since(client.last));
                client.last = cluster.now;
            }
            cluster.alarm(PAUSE, number);
        }
    }
    // Who never heard anything again is silent to the end.
    let silent = clients.iter().map(|it| it.silent.max(cluster.now.since(it.last)));
    silent.max().expect("clients")
}

#[test]
fn every_key_is_back_within_two_seconds_of_a_single_fault() {
    for seed in 0..5 {
        for (what, fault) in [("pause", Cluster::pause as fn(&mut _, _)), ("crash", Cluster::crash)]
        {
            let silent = longest_silence(seed, fault);
            assert!(silent < Duration::from_secs(2), "{silent:?} after a {what}, seed {seed}");
        }
    }
}
