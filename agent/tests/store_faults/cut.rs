//! Files that end too early, and files that are gone.

use std::path::{Path, PathBuf};

use crate::history::{History, Seen, in_journal, in_tables_and_journal, is_thorough};
use crate::image::Image;

/// Cuts the last journal everywhere near its end, and here and there before; judges what is seen.
fn cut(image: &Image, history: &History, judge: impl Fn(usize, &Seen)) {
    let (tail, step) = if is_thorough() { (4 << 10, 29) } else { (300, 211) };
    let journal = image.journals().pop().unwrap();
    let end = image.content(&journal);
    let tail = end.saturating_sub(tail);
    for at in (0..tail).step_by(step).chain(tail..=end) {
        judge(at, &history.look(&image.with(&journal, |bytes| bytes.truncate(at))));
    }
}

#[test]
fn a_journal_cut_anywhere_holds_the_commits_before_the_cut() {
    let history = History::of(60);
    let last = std::cell::Cell::new(0);
    cut(&in_journal(60), &history, |at, seen| match seen {
        // Where a commit ends, there is one more.
        Seen::Commits(commits) => {
            assert!(last.get() <= *commits, "cut at {at}: {commits} after {}", last.get());
            last.set(*commits);
        }
        // Not even its owner is written down there.
        seen => assert!(at < 200 && matches!(seen, Seen::Refused(_)), "cut at {at}: {seen:?}"),
    });
    assert_eq!(last.get(), history.len());
}

#[test]
fn what_is_in_tables_does_not_depend_on_the_journal() {
    let history = History::of(50);
    cut(&in_tables_and_journal(30, 50, false), &history, |at, seen| match seen {
        Seen::Commits(commits) => assert!(*commits >= 30, "cut at {at}: {seen:?}"),
        // The next commit would not follow the last one in the journal.
        Seen::Refused(reason) => assert!(reason.contains("its journal ends with"), "{reason}"),
        seen => panic!("cut at {at}: {seen:?}"),
    });
}

#[test]
fn a_journal_that_lost_what_was_marked_is_refused() {
    let history = History::of(50);
    let image = in_tables_and_journal(30, 50, true);
    let end = image.content(&image.journals().pop().unwrap());
    cut(&image, &history, |at, seen| match seen {
        Seen::Refused(reason) => assert!(at < end && reason.contains("the disk lost"), "{reason}"),
        seen => assert!(at == end && *seen == Seen::Commits(50), "cut at {at}: {seen:?}"),
    });
}

#[test]
fn any_file_cut_anywhere_is_told() {
    let history = History::of(50);
    let image = in_tables_and_journal(30, 50, true);
    let (tail, step) = if is_thorough() { (1 << 10, 17) } else { (64, 499) };
    // The lock says nothing that anybody needs, and of journals see above.
    let is_other = |name: &&PathBuf| !name.ends_with("lock") && !image.journals().contains(name);
    for name in image.0.keys().filter(is_other) {
        let end = image.0[name].len();
        let tail = end.saturating_sub(tail);
        for at in (0..tail).step_by(step).chain(tail..end) {
            let seen = history.look(&image.with(name, |bytes| bytes.truncate(at)));
            assert!(seen.is_told(), "{} cut at {at} of {end}: {seen:?}", name.display());
        }
    }
}

#[test]
fn a_file_that_is_gone_is_missed() {
    let history = History::of(50);
    let image = in_tables_and_journal(30, 50, true);
    for name in image.0.keys() {
        let mut image = image.clone();
        image.0.remove(name);
        let seen = history.look(&image);
        let is_needed = name != Path::new("lock");
        assert_eq!(seen.is_told(), is_needed, "without {}: {seen:?}", name.display());
        assert!(is_needed || seen == Seen::Commits(50), "without {}: {seen:?}", name.display());
    }
    for keyspace in 0..3 {
        let folder = format!("store/keyspaces/{keyspace}");
        let mut image = image.clone();
        image.0.retain(|name, _| !name.starts_with(&folder));
        let seen = history.look(&image);
        assert!(seen.is_told(), "without {folder}: {seen:?}");
    }
}
