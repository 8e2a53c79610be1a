//! What goes wrong, and what people do, in one run: made from the seed before the run begins, so that a step can be left out.

use sq_agent::proxy::NudgeReason;

use crate::{calls::Call, rng::Rng};

/// Of which a step draws one.
const NUDGES: [NudgeReason; 4] = [NudgeReason::Parked, NudgeReason::Refused, NudgeReason::WrongInstance, NudgeReason::InDoubt];

/// Tenants that a run may know.
pub(crate) const TENANTS: u8 = 9;
/// Ports that instances may have: few, so that they are fought for.
pub(crate) const PORTS: u16 = 14;

/// One thing that happens at a moment, milliseconds since the run began.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Step {
    pub(crate) at: u64,
    pub(crate) what: What,
}

/// Tenants and ports are named by their number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum What {
    /// An sq dies by itself.
    Die(u8),
    /// An sq goes on and answers nothing any more.
    Hang(u8),
    /// Every start of this tenant fails until `for_ms` later.
    StartsFail { tenant: u8, for_ms: u64 },
    /// Starts take up to 15 s: longer than they may.
    SlowStarts { for_ms: u64 },
    /// TERM does nothing to this tenant's sq.
    Stubborn(u8),
    /// The kernel holds this tenant's sq: not even KILL ends it for a while.
    Immortal { tenant: u8, for_ms: u64 },
    /// Something that is not ours listens on a port.
    Stranger { port: u16, for_ms: u64 },
    /// Somebody starts an sq in this tenant's directory by hand.
    Foreign(u8),
    /// A request that takes so long.
    Request { tenant: u8, for_ms: u64 },
    /// The proxy says something about a tenant, true or not.
    Nudge(u8, NudgeReason),
    /// Somebody saves tenants.toml.
    Edit(Edit),
    /// `sq-agent confirm` with the hash that is shown.
    Confirm,
    /// `sq-agent restart`.
    Restart(u8),
    /// `sq-agent snapshot`.
    Snapshot(u8),
    /// `sq-agent restore --as`.
    Restore(u8),
    /// The wall clock is set.
    WallJump { seconds: i64 },
    /// instances.db refuses every other call.
    RecordsFail { for_ms: u64 },
    /// A look cannot tell.
    LooksFail { for_ms: u64 },
    /// The route table cannot be written.
    PublishFails { for_ms: u64 },
    /// sq can neither be found nor installed.
    NoProgram { for_ms: u64 },
    /// News takes up to 3 s, each tenant's its own time.
    Slow { for_ms: u64 },
    /// News may come twice, the second time up to 5 s later.
    Doubled { for_ms: u64 },
    /// The agent dies in the middle of a call.
    Crash(Crash),
    /// The agent dies between two turns.
    Kill,
    /// An upgrade: the agent halts, the next one begins.
    HandOver,
    /// The agent is told to stop, perhaps twice, and is started again later.
    Stop { twice: bool },
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Edit {
    Add(u8),
    Remove(u8),
    Suspend(u8),
    Resume(u8),
    Tier(u8),
    Program,
    PublicUrl,
    RemoveMost,
    Empty,
    All,
    Break,
}

/// When, and whether what the call does has been done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Crash {
    pub(crate) at: CrashAt,
    pub(crate) done: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum CrashAt {
    /// So many calls from now.
    Nth(u32),
    /// At the next call of this kind.
    Kind(Call),
}

/// The script of a seed: its steps in order, and when they end.
pub(crate) fn script(seed: u64) -> (Vec<Step>, u64) {
    let rng = &mut Rng::new(seed ^ 0x5c41_9e75);
    let end = rng.between(20, 150) * 1_000;
    let count = rng.between(3, 45);
    let mut steps: Vec<Step> = (0..count).map(|_| Step { at: rng.below(end), what: what(rng) }).collect();
    steps.sort_by_key(|step| step.at);
    (steps, end)
}

fn tenant(rng: &mut Rng) -> u8 {
    rng.below(u64::from(TENANTS)) as u8
}

fn what(rng: &mut Rng) -> What {
    let for_ms = rng.between(1, 40) * 500;
    match rng.below(43) {
        0..3 => What::Die(tenant(rng)),
        3..5 => What::Hang(tenant(rng)),
        5 => What::StartsFail { tenant: tenant(rng), for_ms },
        6 => What::SlowStarts { for_ms },
        7 => What::Stubborn(tenant(rng)),
        8 => What::Immortal { tenant: tenant(rng), for_ms: for_ms * 3 },
        9 => What::Stranger { port: rng.below(u64::from(PORTS)) as u16, for_ms: if rng.one_in(6) { u64::MAX / 2 } else { for_ms * 5 } },
        10 => What::Foreign(tenant(rng)),
        11..16 => What::Request { tenant: tenant(rng), for_ms },
        16 => What::Nudge(tenant(rng), NUDGES[rng.below(NUDGES.len() as u64) as usize]),
        17..24 => What::Edit(edit(rng)),
        24 => What::Confirm,
        25 => What::Restart(tenant(rng)),
        26 => What::WallJump { seconds: rng.below(40_000) as i64 - 20_000 },
        27 => What::RecordsFail { for_ms },
        28 => What::LooksFail { for_ms },
        29 => What::PublishFails { for_ms },
        30 => What::NoProgram { for_ms },
        31 => What::Slow { for_ms },
        32 => What::Doubled { for_ms },
        33..36 => What::Crash(crash(rng)),
        36 | 37 => What::Kill,
        38 => What::HandOver,
        39 => What::Snapshot(tenant(rng)),
        40 | 41 => What::Restore(tenant(rng)),
        _ => What::Stop { twice: rng.one_in(3) },
    }
}

fn edit(rng: &mut Rng) -> Edit {
    match rng.below(16) {
        0..3 => Edit::Add(tenant(rng)),
        3..5 => Edit::Remove(tenant(rng)),
        5 | 6 => Edit::Suspend(tenant(rng)),
        7 => Edit::Resume(tenant(rng)),
        8 => Edit::Tier(tenant(rng)),
        9 => Edit::Program,
        10 => Edit::PublicUrl,
        11 => Edit::RemoveMost,
        12 => Edit::Empty,
        13 | 14 => Edit::All,
        _ => Edit::Break,
    }
}

fn crash(rng: &mut Rng) -> Crash {
    let at = if rng.one_in(3) {
        CrashAt::Nth(rng.below(60) as u32)
    } else if rng.one_in(16) {
        // It takes an unproved process and this crash to meet in one run.
        CrashAt::Kind(Call::DrainUnproved)
    } else {
        CrashAt::Kind(Call::ALL[rng.below(Call::ALL.len() as u64) as usize])
    };
    Crash { at, done: rng.one_in(2) }
}
