//! The rules of the protocol, each of which can be switched off to see what it is good for.
//!
//! # Mistakes that were made before
//!
//! The variants that broke when the protocol was designed, the switch that stands for each, and the test
//! that has to find the run that it allows. "Four-way" is the scheme {a,b,c} -> {a,b,c,d} -> {b,c,d} with
//! copies, which was not built: its mistakes are those of the sweep here. The model catches them all; none is
//! left to the simulator.
//!
//! | mistake | switch, off | test |
//! |---|---|---|
//! | the new epoch reads only its own members | `prev_is_asked` | `replacing::rules_of_the_quorums` |
//! | an acceptor ignores the epoch | `older_is_refused` and `newer_is_adopted` | `replacing::rules_of_the_fence` |
//! | it refuses only newer epochs, and still serves older ones | `older_is_refused` | the same |
//! | a previous member answers without having adopted the epoch | `prev_adopts` | the same |
//! | phase 1 asks previous members only | `members_are_asked` | `replacing::rules_of_the_quorums` |
//! | the next change is decided before the sweep | `slot_waits_for_sweep` | `replacing::rules_of_the_slot`, `merging::rules_of_merged_data` |
//! | four-way: a member is removed without a copy | `sweep_brings_keys` | `sweeping::rules_of_the_sweep` |
//! | four-way: the source has not left the old epoch | `scan_is_fenced` | the same |
//! | four-way: one source | `scan_asks_majority` | the same |
//! | four-way: a copy is refused for a later promise, yet ticked off | `sweep_tries_again` | `sweeping::a_sweep_that_is_refused` |
//! | a copy is stored in spite of a later promise | `copy_heeds_promise` | `catching_up::copies_at_once`, `copies_of_an_older_epoch` |
//! | a copy is left out, yet ticked off | `sweep_brings_keys` | `sweeping::rules_of_the_sweep` |
//! | the quorum is relaxed in the middle of a read | `quorum_is_fixed` | the same |
//! | a released node answers "nothing" | `released_refuses` | `replacing::rules_of_leaving` |
//! | a released or formatted node forgets epoch and slots | `leaver_remembers`, `lost_disk_is_new_node` | the same, `losing::a_lost_disk_is_a_new_node` |
//! | ballots without epoch, previous members do not promise | `ballot_has_epoch`, `prev_promises` | `replacing::rules_of_the_ballots` |
//! | ballots without epoch, adoption forgets promises | `promises_outlive_epoch` (and `ballot_has_epoch`) | the same |
//! | a reserved ballot is used in the next epoch | `sticky_dies_with_epoch` | the same |
//! | a ballot is used again after a restart | `ballot_is_unique` | the same |
//! | a read returns the highest answer and does not write back | `read_writes_back` | `replacing::rules_of_the_answers` |
//! | "it exists" is answered after phase 1 | `exists_writes_back` | the same |
//! | a retry without the id of its request | `requests_are_known` | `retrying::a_request_is_carried_out_once` |
//! | a tombstone goes in its own epoch | `drop_awaits_epoch` | `collecting::rules_of_tombstones` |
//! | it goes in an epoch above its own, not above that of the reports | `drop_awaits_epoch_after_report` | `collecting::tombstones_and_copies` |
//! | it goes when a majority has it | `all_hold_tombstone` | `collecting::rules_of_tombstones` |
//! | it goes with a later promise on it | `drop_heeds_promise` | the same |
//! | a slot is decided by a majority of the proposed members | `slot_asks_old_members` | `replacing::rules_of_the_slot` |
//! | a slot without phase 1 | `slot_has_phase_one` | the same |
//! | a member that left wipes its slot | `leaver_remembers` | `replacing::rules_of_leaving` |
//! | merge: it is given up because time has passed | `found_merge_is_not_given_up` | `merging::rules_of_the_slots_of_a_merge` |
//! | merge: it names the other range and not its epoch | `merge_names_epochs` | the same |
//!
//! The other switches are rules of the protocol as it was built: merges decided in two slots at once,
//! newcomers that hold nothing, requests that a key has forgotten, sweeps of many keys.

/// One switch per rule. All on is the protocol that the agent runs; a test switches one off and the
/// checker has to find the run that it forbids.
///
/// To add a rule: add a field here, set it in [`Rules::ALL`], ask for it at the one place that it
/// governs, and add a test that calls `rule_is_needed` and, if the mistake has been made before, a row above.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Until the sweep, phase 1 of the new epoch needs a majority of the previous members as well.
    /// Off: the new epoch reads only its own members.
    pub(crate) prev_is_asked: bool,
    /// Phase 1 of the new epoch needs a majority of its members, also while it asks the previous
    /// ones. Off: the previous members alone are asked.
    pub(crate) members_are_asked: bool,
    /// What phase 1 needs is settled before the first answer is counted. Off: an operation that is
    /// under way stops asking the previous members when it hears of the end of the sweep.
    pub(crate) quorum_is_fixed: bool,
    /// A node that is in a newer epoch than the message refuses it. Off: it serves older epochs too.
    pub(crate) older_is_refused: bool,
    /// A node adopts the newer epoch of a message, durably, before it answers. Off: it answers from
    /// the epoch that it is in.
    pub(crate) newer_is_adopted: bool,
    /// That holds for a node too that only is a previous member there. Off: it answers from the epoch that
    /// it is in.
    pub(crate) prev_adopts: bool,
    /// Only a decided configuration is adopted and served. Off: a proposed one will do.
    pub(crate) config_is_decided: bool,
    /// A ballot is ordered by its epoch first. Off: by its round alone.
    pub(crate) ballot_has_epoch: bool,
    /// The previous members promise as well. Needed only if ballots do not begin with their epoch, so it
    /// is off in the protocol that the agent runs.
    pub(crate) prev_promises: bool,
    /// Adopting an epoch leaves the promises of the keys alone. Off: they are forgotten. Needed only if
    /// ballots do not begin with their epoch.
    pub(crate) promises_outlive_epoch: bool,
    /// A ballot is never used twice, also not after a restart. Off: the restarted proposer uses its
    /// rounds again, and takes a promise made to its first life for its own.
    pub(crate) ballot_is_unique: bool,
    /// The ballot reserved for the next change dies with the epoch. Off: it is used in the next one.
    pub(crate) sticky_dies_with_epoch: bool,
    /// A read that found no agreeing majority writes back what it returns. Off: it just returns the
    /// highest answer.
    pub(crate) read_writes_back: bool,
    /// "It exists" is answered after the existing value was written back. Off: right after phase 1.
    pub(crate) exists_writes_back: bool,
    /// A change that finds the mark of its own request says what the first attempt did. Off: it takes
    /// its own value for somebody else's.
    pub(crate) requests_are_known: bool,
    /// The deletion of a value whose time is over names its version. Off: whatever is there is deleted.
    pub(crate) expiry_names_its_version: bool,
    /// A copy between nodes (anti-entropy) is an accept request that comes late: a promise of a higher
    /// ballot refuses it. Off: it is stored wherever it is newer than what is there.
    pub(crate) copy_heeds_promise: bool,
    /// A node that deleted its keys after the sweep refuses. Off: it answers "nothing".
    pub(crate) released_refuses: bool,
    /// A node that left the range keeps its epoch and its slot records. Off: it comes back as a node
    /// that was just told the first configuration.
    pub(crate) leaver_remembers: bool,
    /// A tombstone is forgotten only when every member has said that it holds it. Off: a majority.
    pub(crate) all_hold_tombstone: bool,
    /// A node forgets a tombstone only in a later epoch than that of the reports. Off: at once.
    pub(crate) drop_awaits_epoch: bool,
    /// The later epoch has to be later than that of the reports. Off: than that of the deletion.
    pub(crate) drop_awaits_epoch_after_report: bool,
    /// A node that made a promise in a later epoch keeps the tombstone. Off: it forgets the promise too.
    pub(crate) drop_heeds_promise: bool,
    /// The next change of the members waits for the sweep of the last one. Off: it does not.
    pub(crate) slot_waits_for_sweep: bool,
    /// A slot is decided by a majority of the members of the epoch that it ends. Off: by a majority
    /// of the proposed members.
    pub(crate) slot_asks_old_members: bool,
    /// A proposer of a slot asks what was accepted before. Off: it writes its own proposal.
    pub(crate) slot_has_phase_one: bool,
    /// A node is made a member only after it has said, in the epoch that ends, that it is none and holds
    /// nothing of the range. Off: it is not asked.
    pub(crate) newcomer_is_clear: bool,
    /// A node that lost its disk joins as another one. Off: it comes back as the one that it was, with
    /// nothing but what a paused proposer tells it of the first configuration.
    pub(crate) lost_disk_is_new_node: bool,
    /// A request that may be one of those forgotten is not carried out. Off: it is.
    pub(crate) unknown_is_refused: bool,
    /// That holds for the first attempt too, which may come later than the others. Off: for retries only.
    pub(crate) first_attempts_can_be_late: bool,
    /// A retry notes that its condition did not hold. Off: it leaves no trace.
    pub(crate) refusals_are_noted: bool,
    /// A request that is too old to be remembered is carried out only by a node that is alone with it: no
    /// other was asked, and none will be. Off: by the one that was asked first.
    pub(crate) sole_is_alone: bool,
    /// The sweep asks for the keys of a majority of the previous members. Off: of one of them.
    pub(crate) scan_asks_majority: bool,
    /// Who tells its keys to the sweep has adopted the new epoch. Off: it need not have.
    pub(crate) scan_is_fenced: bool,
    /// The sweep has every key that it hears of accepted in the new epoch. Off: it only looks.
    pub(crate) sweep_brings_keys: bool,
    /// A key of the sweep that was refused for a later promise is tried again. Off: it is ticked off.
    pub(crate) sweep_tries_again: bool,
    /// The range is swept when all its keys are. Off: when one is.
    pub(crate) sweep_covers_all_keys: bool,
    /// An acceptor of a merge promises in both slots and accepts in both, or refuses. Off: in one at a
    /// time.
    pub(crate) merge_is_atomic: bool,
    /// Who finds a merge in the one slot that it asks asks both. Off: it finishes the merge in that one.
    pub(crate) found_merge_asks_both: bool,
    /// Who finds a merge finishes it, or hears from the other slot that it is dead. Off: it gives it up, as
    /// if it had waited long enough.
    pub(crate) found_merge_is_not_given_up: bool,
    /// A merge names the epochs of both ranges. Off: only the ranges, so that it can be decided in
    /// whatever slots they have come to.
    pub(crate) merge_names_epochs: bool,
    /// That a found merge is dead is concluded from the other slot. Off: from the other range having a
    /// later epoch.
    pub(crate) slot_tells_dead_merge: bool,
    /// A merge of which one slot has accepted something else since is given up. Off: it is finished.
    pub(crate) overtaken_merge_is_dead: bool,
    /// Who has left the epoch of one of the two slots of a merge votes about both all the same, so that the
    /// other range can go on. Off: it refuses.
    pub(crate) slots_outlive_epochs: bool,
    /// Adopting the merged range fences off both. Off: only the right one, whose name it takes.
    pub(crate) merge_fences_both: bool,
}

impl Rules {
    /// The protocol that the agent runs.
    pub(crate) const ALL: Self = Self {
        prev_is_asked: true,
        members_are_asked: true,
        quorum_is_fixed: true,
        older_is_refused: true,
        newer_is_adopted: true,
        prev_adopts: true,
        config_is_decided: true,
        ballot_has_epoch: true,
        prev_promises: false,
        promises_outlive_epoch: true,
        ballot_is_unique: true,
        sticky_dies_with_epoch: true,
        read_writes_back: true,
        exists_writes_back: true,
        requests_are_known: true,
        copy_heeds_promise: true,
        released_refuses: true,
        leaver_remembers: true,
        all_hold_tombstone: true,
        drop_awaits_epoch: true,
        drop_awaits_epoch_after_report: true,
        drop_heeds_promise: true,
        slot_waits_for_sweep: true,
        slot_asks_old_members: true,
        slot_has_phase_one: true,
        newcomer_is_clear: true,
        lost_disk_is_new_node: true,
        unknown_is_refused: true,
        first_attempts_can_be_late: true,
        refusals_are_noted: true,
        sole_is_alone: true,
        scan_asks_majority: true,
        scan_is_fenced: true,
        sweep_brings_keys: true,
        sweep_tries_again: true,
        sweep_covers_all_keys: true,
        merge_is_atomic: true,
        found_merge_asks_both: true,
        found_merge_is_not_given_up: true,
        expiry_names_its_version: true,
        merge_names_epochs: true,
        slot_tells_dead_merge: true,
        overtaken_merge_is_dead: true,
        slots_outlive_epochs: true,
        merge_fences_both: true,
    };
}
