use super::*;
use crate::desired::{Alerts, IsolationMode, PortRange, Proxy, SqSource, TenantId, testing};
use crate::{
    observed::{FileWork, Restore},
    snapshot::Name,
};

const PROGRAM: &str = "sq 0.6.0";
const NOW: Moment = Moment::from_millis(1_000_000);

fn id(n: usize) -> TenantId {
    TenantId::parse(&format!("t{n:04}")).unwrap()
}

fn tenant(n: usize) -> Tenant {
    testing::tenant(id(n))
}

fn desired(ids: impl IntoIterator<Item = usize>) -> Desired {
    Desired {
        state_dir: "state".into(),
        name: "test".into(),
        ports: PortRange { first: 10_001, last: 19_999 },
        isolation: IsolationMode::Auto,
        disk_reserve: None,
        sq: SqSource::Version("0.6.0".into()),
        proxy: Proxy::default(),
        backup: None,
        gitops: None,
        require_reviewed_hash: false,
        admin: None,
        metrics: Default::default(),
        alerts: Alerts::default(),
        snapshots: crate::desired::Snapshots { hourly: 24, daily: 7, weekly: 4, max_size: 1 << 20 },
        tiers: Default::default(),
        tenants: ids.into_iter().map(|n| (id(n), tenant(n))).collect(),
        hash: String::new(),
    }
}

fn running(n: usize) -> Known {
    let running = Running { epoch: 1, pid: 100, program: PROGRAM.into(), since: NOW, started_at: 0 };
    Known {
        program: PROGRAM.into(),
        state: State::Running(running),
        port: Some(10_001),
        ..Known::new(u32::try_from(n).unwrap(), tenant(n))
    }
}

fn observed(ids: impl IntoIterator<Item = usize>) -> Observed {
    Observed {
        known: ids.into_iter().map(|n| (id(n), running(n))).collect(),
        programs: [PROGRAM, "sq 0.7.0"].map(String::from).into(),
        ..Observed::default()
    }
}

fn with(mut observed: Observed, n: usize, change: impl FnOnce(&mut Known)) -> Observed {
    change(observed.known.get_mut(&id(n)).unwrap());
    observed
}

#[test]
fn nothing_is_done_where_observed_equals_desired() {
    assert_eq!(plan(&desired(0..100), &observed(0..100), NOW), []);
}

#[test]
fn a_new_tenant_gets_its_place_and_then_its_instance() {
    assert_eq!(plan(&desired([1]), &observed([]), NOW), [Action::Apply(id(1)), Action::Start(id(1))]);
}

#[test]
fn a_removed_tenant_leaves_stops_and_is_forgotten() {
    let state = observed([1, 2]);
    assert_eq!(plan(&desired([2]), &state, NOW), [Action::Leave(id(1)), Action::Stop(id(1), StopReason::Removed)]);
    let state = with(state, 1, |known| {
        known.leaving = true;
        known.state = State::Stopping { epoch: 1, why: StopReason::Removed };
    });
    assert_eq!(plan(&desired([2]), &state, NOW), []);
    let state = with(state, 1, |known| known.state = State::Absent);
    assert_eq!(plan(&desired([2]), &state, NOW), [Action::Keep(id(1), Reason::BeforeRemoval)]);
    let state = with(state, 1, |known| known.files = Some(FileWork::Keep { number: 1, reason: Reason::BeforeRemoval }));
    assert_eq!(plan(&desired([2]), &state, NOW), []);
    let state = with(state, 1, |known| {
        known.files = None;
        known.kept = Some(Reason::BeforeRemoval);
    });
    assert_eq!(plan(&desired([2]), &state, NOW), [Action::Forget(id(1))]);
}

#[test]
fn a_snapshot_is_put_back_once_the_instance_is_stopped_and_before_it_starts_again() {
    let restore = Restore { number: 1, from: id(2), name: Name { at: 0, reason: Reason::Asked }, file: None };
    let state = with(observed([1]), 1, |known| known.restore = Some(restore));
    assert_eq!(plan(&desired([1]), &state, NOW), [Action::Stop(id(1), StopReason::Restore)]);
    let state = with(state, 1, |known| {
        known.state = State::Absent;
        known.back_off.not_before = Some(NOW + Duration::from_secs(60));
    });
    assert_eq!(plan(&desired([1]), &state, NOW), [Action::Restore(id(1))], "a crashed one does not wait for its next try");
    let leaving = with(state.clone(), 1, |known| known.leaving = true);
    assert_eq!(plan(&desired([]), &leaving, NOW), [Action::Restore(id(1))], "whoever waits for it hears of it");
    let state = with(state, 1, |known| known.files = Some(FileWork::Restore));
    assert_eq!(plan(&desired([1]), &state, NOW + Duration::from_secs(60)), []);
}

#[test]
fn before_another_program_starts_the_phexts_are_kept_and_before_the_same_one_not() {
    let state = with(observed([1]), 1, |known| {
        known.state = State::Absent;
        known.launched = PROGRAM.into();
    });
    assert_eq!(plan(&desired([1]), &state, NOW), [Action::Start(id(1))]);
    let state = with(state, 1, |known| known.program = "sq 0.7.0".into());
    assert_eq!(plan(&desired([1]), &state, NOW), [Action::Keep(id(1), Reason::BeforeProgramChange)]);
    let state = with(state, 1, |known| known.kept = Some(Reason::BeforeProgramChange));
    assert_eq!(plan(&desired([1]), &state, NOW), [Action::Start(id(1))]);
}

#[test]
fn a_leaving_tenant_that_comes_back_is_taken_in_again() {
    let state = with(observed([1]), 1, |known| {
        known.leaving = true;
        known.state = State::Absent;
    });
    assert_eq!(plan(&desired([1]), &state, NOW), [Action::Apply(id(1)), Action::Start(id(1))]);
}

#[test]
fn many_removals_are_held_while_all_else_is_applied() {
    let actions = plan(&desired((40..100).chain([200])), &observed(0..100), NOW);
    let Some(Action::Hold(held)) = actions.first() else { panic!("not held: {actions:?}") };
    assert_eq!((held.removals.len(), held.of), (40, 100));
    assert_eq!(actions[1..], [Action::Apply(id(200)), Action::Start(id(200))]);
}

#[test]
fn a_held_tenant_that_crashes_is_started_again() {
    let state = with(observed(0..100), 3, |known| known.state = State::Absent);
    let actions = plan(&desired([]), &state, NOW);
    assert!(matches!(actions[0], Action::Hold(_)));
    assert_eq!(actions[1..], [Action::Start(id(3))]);
}

#[test]
fn a_confirmed_hash_lets_exactly_that_plan_through() {
    let mut state = observed(0..100);
    let Action::Hold(held) = plan(&desired(50..100), &state, NOW).remove(0) else { panic!() };
    state.confirmed = Some(held.hash);
    let actions = plan(&desired(50..100), &state, NOW);
    assert_eq!(actions.iter().filter(|action| matches!(action, Action::Leave(_))).count(), 50);
    assert!(matches!(plan(&desired(51..100), &state, NOW)[0], Action::Hold(_)));
}

#[test]
fn suspending_stops_and_resuming_starts() {
    let mut want = desired([1]);
    want.tenants.get_mut(&id(1)).unwrap().suspended = true;
    assert_eq!(plan(&want, &observed([1]), NOW), [Action::Apply(id(1)), Action::Stop(id(1), StopReason::Suspended)]);
    let state = with(observed([1]), 1, |known| {
        known.state = State::Absent;
        known.spec.suspended = true;
    });
    assert_eq!(plan(&want, &state, NOW), [Action::Keep(id(1), Reason::BeforeSuspension)]);
    let state = with(state, 1, |known| known.kept = Some(Reason::BeforeSuspension));
    assert_eq!(plan(&want, &state, NOW), []);
    assert_eq!(plan(&desired([1]), &state, NOW), [Action::Apply(id(1)), Action::Start(id(1))]);
}

#[test]
fn changed_limits_are_applied_without_a_restart() {
    let mut want = desired([1]);
    want.tenants.get_mut(&id(1)).unwrap().limits.burst = 7;
    assert_eq!(plan(&want, &observed([1]), NOW), [Action::Apply(id(1))]);
}

#[test]
fn one_action_at_most_is_in_flight_for_a_tenant() {
    for state in [State::Starting { epoch: 2 }, State::Stopping { epoch: 1, why: StopReason::Asked }] {
        let state = with(observed([1]), 1, |known| {
            known.state = state;
            known.restart_wanted = true;
        });
        assert_eq!(plan(&desired([1]), &state, NOW), []);
    }
}

#[test]
fn an_unknown_outcome_forces_a_look_and_nothing_else() {
    let state = with(observed([1]), 1, |known| known.state = State::Unknown);
    assert_eq!(plan(&desired([1]), &state, NOW), [Action::Look(id(1))]);
}

#[test]
fn a_crashed_instance_waits_for_its_back_off_unless_its_desired_state_changes() {
    let later = NOW + Duration::from_secs(1);
    let state = with(observed([1]), 1, |known| {
        known.state = State::Absent;
        known.back_off.not_before = Some(later);
    });
    assert_eq!(plan(&desired([1]), &state, NOW), []);
    assert_eq!(next_try(&state), Some(later));
    assert_eq!(plan(&desired([1]), &state, later), [Action::Start(id(1))]);
    let mut want = desired([1]);
    want.tenants.get_mut(&id(1)).unwrap().limits.burst = 7;
    assert_eq!(plan(&want, &state, NOW), [Action::Apply(id(1)), Action::Start(id(1))]);
}

#[test]
fn at_most_five_percent_a_minute_are_restarted_for_failed_probes() {
    let mut state = observed(0..100);
    state.known.values_mut().for_each(|known| known.unhealthy = true);
    assert_eq!(plan(&desired(0..100), &state, NOW).len(), 5);
    state.probe_restarts = [NOW; 4].into();
    assert_eq!(plan(&desired(0..100), &state, NOW + Duration::from_secs(59)).len(), 1);
    assert_eq!(plan(&desired(0..100), &state, NOW + Duration::from_secs(60)).len(), 5);
}

#[test]
fn another_program_restarts_a_few_at_a_time() {
    let mut state = observed(0..100);
    state.known.values_mut().for_each(|known| known.program = "sq 0.7.0".into());
    let actions = plan(&desired(0..100), &state, NOW);
    assert_eq!(actions.len(), ROLLING);
    assert_eq!(actions[0], Action::Stop(id(0), StopReason::ProgramChanged));
}
