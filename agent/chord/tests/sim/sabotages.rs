//! A simulator that finds nothing may be blind. Each of these mistakes is made on purpose, and has to be
//! found within a few seeds.

use std::time::Duration;

use sky_chord::Settings;

use crate::sim::faults::Kind;
use crate::sim::life::{Plan, live};
use crate::sim::random::Random;
use crate::sim::tamper::Sabotage;
use crate::{on_all_cores, tried};

/// A mistake that is not found in this many lives counts as one that cannot be found.
const SEEDS_MAX: u64 = 60;

#[test]
#[expect(clippy::print_stdout, reason = "shown when asked for")]
fn every_sabotage_is_caught() {
    let count = Sabotage::ALL.len() as u64;
    let caught = on_all_cores(0..count, |index| {
        let sabotage = Sabotage::ALL[index as usize];
        (0..SEEDS_MAX).find_map(|seed| {
            let problem = tried(|| sabotaged(sabotage, seed)).err()?;
            Some((seed + 1, problem))
        })
    });
    let mut missed = Vec::new();
    for (index, found) in caught {
        let sabotage = Sabotage::ALL[index as usize];
        match found {
            Some((lives, problem)) => {
                let line = problem.lines().next().unwrap_or_default();
                println!("{sabotage:?}: in life {lives}: {line:.150}");
            }
            None => missed.push(sabotage),
        }
    }
    assert!(missed.is_empty(), "not caught within {SEEDS_MAX} lives: {missed:?}");
}

/// A short life in which this mistake can do harm.
fn sabotaged(sabotage: Sabotage, seed: u64) {
    let mut random = Random::new(seed);
    let kinds = match sabotage {
        Sabotage::BootIsNotRaised
        | Sabotage::SyncedIsLost
        | Sabotage::OldNameEmptyDisk
        | Sabotage::EarlyPersisted
        | Sabotage::TornCommit
        | Sabotage::VotesAreForgotten => vec![Kind::Crash, Kind::PowerCut, Kind::Join],
        Sabotage::ScanLeavesOut
        | Sabotage::SweptAtOnce
        | Sabotage::PrevIsLeftOut
        | Sabotage::TombstonesVanish
        | Sabotage::RefusalIsNothing
        | Sabotage::NoFence
        | Sabotage::LackIsDenied => vec![Kind::Crash, Kind::Join, Kind::Pause, Kind::Leave],
        Sabotage::OneCopyRead
        | Sabotage::TwinRequest
        | Sabotage::AcceptIsDropped
        | Sabotage::ConditionIsIgnored
        | Sabotage::HintsAreEmpty
        | Sabotage::ToldOutOfTurn => vec![Kind::Pause, Kind::Partition],
        Sabotage::OneClockDecides => vec![Kind::Leap],
    };
    let settings = Settings { repair_after: Duration::from_secs(2), ..Settings::default() };
    // Whoever looks at everything finds what was not told.
    let look_every = match sabotage {
        Sabotage::HintsAreEmpty => Duration::from_secs(3600),
        _ => settings.look_every,
    };
    let apart_above = match sabotage {
        Sabotage::LackIsDenied => 0,
        _ => settings.apart_above,
    };
    let plan = Plan {
        size: 5,
        even: true,
        settings: Settings { look_every, apart_above, ..settings },
        clients: 4,
        keys: 4,
        steady: 4,
        watchers: 2,
        think: Duration::from_millis(100),
        hot: true,
        kinds,
        troubled: Duration::from_secs(20),
        drift: 0,
        wall_spread: Duration::ZERO,
        idle: false,
        sabotage: Some(sabotage),
    };
    live(&plan, &mut random);
}
