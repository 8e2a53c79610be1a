//! Every crash at every step, with every outcome of what was under way: what was acknowledged stays, what was said not to be applied is not there,
//! and nothing is ever half.

use std::collections::BTreeSet;

use super::*;

/// What a file holds: nothing at all, a whole version, or rubbish (half a version; blocks that never reached the disk).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Content {
    Missing,
    Version(u8),
    Rubbish,
}

use Content::{Missing, Rubbish, Version};

/// The files, as whoever looks at them sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Disk {
    file: Content,
    copy: Content,
    /// Whether the file was there when the marker was set, and whether the copy was on the disk before it.
    marker: Option<(bool, bool)>,
}

/// One change of a disk. Where the power ends, any of those that were not synced may have reached it, in any order.
#[derive(Debug, Clone, Copy)]
enum Change {
    File(Content),
    Copy(Content),
    Marker(Option<(bool, bool)>),
    /// The copy takes the file's place: one step in the file system's journal.
    PutBack(Content),
}

impl Disk {
    fn change(&mut self, change: Change) {
        match change {
            Change::File(content) => self.file = content,
            Change::Copy(content) => self.copy = content,
            Change::Marker(marker) => self.marker = marker,
            Change::PutBack(content) => (self.file, self.copy) = (content, Missing),
        }
    }
}

/// The process died in the middle of a call.
#[derive(Debug, PartialEq, Eq)]
struct Died;

/// The host: what is seen, what is on the disk, and when the process dies.
#[derive(Debug, Clone)]
struct Host {
    seen: Disk,
    synced: Disk,
    pending: Vec<Change>,
    /// Steps left before death.
    left: u32,
    copy_known: bool,
}

impl Host {
    fn new(disk: Disk, left: u32) -> Self {
        Self { seen: disk, synced: disk, pending: Vec::new(), left, copy_known: false }
    }

    fn step(&mut self) -> Result<(), Died> {
        self.left = self.left.checked_sub(1).ok_or(Died)?;
        Ok(())
    }

    fn change(&mut self, change: Change) -> Result<(), Died> {
        self.step()?;
        self.seen.change(change);
        self.pending.push(change);
        Ok(())
    }

    /// What may be found after the end of the host's power: any subset of what was not synced, each in the order in which it was done; of a
    /// content, also rubbish.
    fn after_power_loss(&self) -> BTreeSet<Disk> {
        let mut found = BTreeSet::new();
        for subset in 0..1_u32 << self.pending.len() {
            for half in 0..=self.pending.len() {
                let mut disk = self.synced;
                for (n, change) in self.pending.iter().enumerate().filter(|(n, _)| subset >> n & 1 == 1) {
                    let torn = match *change {
                        Change::File(_) if n == half => Change::File(Rubbish),
                        Change::Copy(_) if n == half => Change::Copy(Rubbish),
                        whole => whole,
                    };
                    disk.change(torn);
                }
                found.insert(disk);
            }
        }
        found
    }
}

const BOOT: &str = "boot";

fn a_marker(existed: bool, durable: bool) -> Marker {
    Marker { file: "a.phext".into(), request_id: "r".into(), epoch: 1, existed, size: 1, durable, boot_id: BOOT.into() }
}

impl Files for Host {
    type Error = Died;

    fn copy(&mut self) -> Result<bool, Died> {
        if self.seen.file == Missing {
            return Ok(false);
        }
        if !self.copy_known {
            // In place: it is rubbish meanwhile.
            self.change(Change::Copy(Rubbish))?;
            self.change(Change::Copy(self.seen.file))?;
        }
        Ok(true)
    }

    fn mark(&mut self, marker: &Marker) -> Result<(), Died> {
        self.change(Change::Marker(Some((marker.existed, marker.durable))))
    }

    fn marker(&mut self) -> Result<Option<Marker>, Died> {
        Ok(self.seen.marker.map(|(existed, durable)| a_marker(existed, durable)))
    }

    fn unmark(&mut self) -> Result<(), Died> {
        self.change(Change::Marker(None))
    }

    fn put_back(&mut self, marker: &Marker) -> Result<(), Died> {
        match (marker.existed, self.seen.copy) {
            (false, _) => self.change(Change::File(Missing)),
            // Put back already.
            (true, Missing) => Ok(()),
            (true, copy) => self.change(Change::PutBack(copy)),
        }
    }

    fn copy_is_whole(&mut self, _: &Marker) -> Result<bool, Died> {
        Ok(self.seen.copy != Rubbish)
    }

    fn sync(&mut self) -> Result<(), Died> {
        self.step()?;
        (self.synced, self.pending) = (self.seen, Vec::new());
        Ok(())
    }
}

/// How sq meets the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sq {
    Writes,
    DiesHalfway,
    DiesAfterTheWrite,
    NeverGetsIt,
}

/// What the client was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Stored,
    NotApplied,
    Nothing,
}

/// The new text.
const NEW: Content = Version(2);

/// One write, as proxy, guard and sq do it together. The host's steps may end anywhere in it.
fn write(host: &mut Host, sq: Sq, durability: Durability) -> Result<Told, Died> {
    begin(host, durability, |existed| a_marker(existed, durability == Durability::Power))?;
    match sq {
        Sq::NeverGetsIt => {
            host.unmark()?;
            return Ok(Told::Nothing);
        }
        Sq::DiesHalfway => {
            host.change(Change::File(Rubbish))?;
            return Ok(Told::NotApplied);
        }
        Sq::Writes | Sq::DiesAfterTheWrite => {
            host.change(Change::File(Rubbish))?;
            host.change(Change::File(NEW))?;
        }
    }
    if sq == Sq::DiesAfterTheWrite {
        return Ok(Told::NotApplied);
    }
    keep(host, durability)?;
    Ok(Told::Stored)
}

/// Recovers, dying (or losing the power, where the boot is another one) at every step of it in turn, and beginning anew; returns every disk that
/// this may end in.
fn recovered(disk: Disk, boot_id: &str) -> BTreeSet<Disk> {
    let mut ends = BTreeSet::new();
    for left in 0.. {
        let mut host = Host::new(disk, left);
        let done = recover(&mut host, boot_id).is_ok();
        let durable = disk.marker.is_some_and(|(_, durable)| durable);
        let found = if boot_id != BOOT && durable { host.after_power_loss() } else { BTreeSet::from([host.seen]) };
        for disk in found {
            let mut again = Host::new(disk, u32::MAX);
            recover(&mut again, boot_id).unwrap();
            ends.insert(again.seen);
        }
        if done {
            return ends;
        }
    }
    ends
}

/// Every disk before a write, with what the file holds.
fn before() -> Vec<Disk> {
    let mut disks = Vec::new();
    for file in [Missing, Version(1)] {
        for copy in [Missing, Version(0), Version(1), Rubbish] {
            disks.push(Disk { file, copy, marker: None });
        }
    }
    disks
}

/// Every write with its death at every step: the disks that are found, what they held before, and what the client was told.
fn all(durability: Durability, found: impl Fn(&Host) -> BTreeSet<Disk>, boot_id: &str, holds: impl Fn(Disk, Content, Told) -> bool) -> u64 {
    let mut looked = 0;
    for start in before() {
        for sq in [Sq::Writes, Sq::DiesHalfway, Sq::DiesAfterTheWrite, Sq::NeverGetsIt] {
            for left in 0.. {
                let mut host = Host::new(start, left);
                let told = write(&mut host, sq, durability);
                let ended = told.is_ok();
                for disk in found(&host) {
                    for end in recovered(disk, boot_id) {
                        looked += 1;
                        assert!(
                            holds(end, start.file, *told.as_ref().unwrap_or(&Told::Nothing)),
                            "{durability:?}, {start:?}, sq {sq:?}, dead after {left} steps, told {told:?}, found {disk:?}: ends as {end:?}"
                        );
                    }
                }
                if ended {
                    break;
                }
            }
        }
    }
    looked
}

fn as_promised(end: Disk, before: Content, told: Told) -> bool {
    end.marker.is_none()
        && match told {
            Told::Stored => end.file == NEW,
            Told::NotApplied => end.file == before,
            Told::Nothing => end.file == before || end.file == NEW,
        }
}

#[test]
fn whatever_process_dies_at_whatever_step_the_answer_stays_true_and_nothing_is_half() {
    for durability in [Durability::Process, Durability::Power] {
        let looked = all(durability, |host| BTreeSet::from([host.seen]), BOOT, as_promised);
        assert!(looked > 100, "{looked}");
    }
}

#[test]
fn with_durability_power_the_same_holds_when_the_power_ends() {
    let looked = all(Durability::Power, Host::after_power_loss, "another boot", as_promised);
    assert!(looked > 300, "{looked}");
}

#[test]
fn with_durability_process_the_power_may_cost_the_last_write_and_never_puts_rubbish_back_over_a_whole_text() {
    // What may be lost is lost; but a copy that did not reach the disk is never taken for a good one.
    let whole = |host: &Host| host.after_power_loss().into_iter().filter(|disk| disk.file != Rubbish).collect();
    all(Durability::Process, whole, "another boot", |end, _, _| end.marker.is_none() && end.file != Rubbish);
}

#[test]
fn the_search_finds_each_order_that_would_be_wrong() {
    let fails = |write: &dyn Fn(&mut Host) -> Result<Told, Died>, power: bool| {
        before().into_iter().any(|start| {
            (0..20).any(|left| {
                let mut host = Host::new(start, left);
                let told = write(&mut host).unwrap_or(Told::Nothing);
                let (found, boot) = if power { (host.after_power_loss(), "another boot") } else { (BTreeSet::from([host.seen]), BOOT) };
                found.into_iter().flat_map(|disk| recovered(disk, boot)).any(|end| !as_promised(end, start.file, told))
            })
        })
    };
    let sq_writes = |host: &mut Host| {
        host.change(Change::File(Rubbish))?;
        host.change(Change::File(NEW))
    };
    // The marker before the copy.
    assert!(fails(
        &|host| {
            let existed = host.seen.file != Missing;
            host.mark(&a_marker(existed, false))?;
            host.copy()?;
            sq_writes(host)?;
            keep(host, Durability::Process)?;
            Ok(Told::Stored)
        },
        false
    ));
    // The answer before the end of the marker.
    assert!(fails(
        &|host| {
            begin(host, Durability::Process, |existed| a_marker(existed, false))?;
            sq_writes(host)?;
            let _dies = keep(host, Durability::Process);
            Ok(Told::Stored)
        },
        false
    ));
    // No copy, or no marker.
    for copies in [false, true] {
        assert!(fails(
            &|host| {
                if copies {
                    host.copy()?;
                } else {
                    host.mark(&a_marker(host.seen.file != Missing, false))?;
                }
                sq_writes(host)?;
                keep(host, Durability::Process)?;
                Ok(Told::Stored)
            },
            false
        ));
    }
    // One of the four syncs left out.
    for left_out in 0..4 {
        assert!(
            fails(
                &|host| {
                    let mut syncs = 0;
                    let mut sync = |host: &mut Host| {
                        syncs += 1;
                        if syncs - 1 == left_out { Ok(()) } else { host.sync() }
                    };
                    let existed = host.copy()?;
                    sync(host)?;
                    host.mark(&a_marker(existed, true))?;
                    sync(host)?;
                    sq_writes(host)?;
                    sync(host)?;
                    host.unmark()?;
                    sync(host)?;
                    Ok(Told::Stored)
                },
                true
            ),
            "sync {left_out}"
        );
    }
}
