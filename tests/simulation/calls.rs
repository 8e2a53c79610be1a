//! The kinds of call that the loop makes into the world: each is a place where the agent may die.

macro_rules! calls {
    ($($name:ident),* $(,)?) => {
        /// A kind of call.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Call { $($name),* }

        impl Call {
            pub(crate) const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

calls! {
    Fingerprint, LoadFile, SaveLastGood, RenewSettings, FindProgram, Scan, Adopt, Start, Drain, DrainUnproved, StopStrays, Look, Watch, Survey, Keep, Restore, Signal,
    ProbePort, Ask, Answers, Publish, Heartbeat, ResetSlot, LetGoTenant, ApplyLimits, Jitter,
    IsInDoubt, LoadRecords, Quarantined, TakeIn, BeginStart, RecordInstance, ClearInstance, SetSpec, LetGo, Programs, KeepPrograms, Alerts, KeepAlerts, SendAlert, AddUsage, KeepSample, Event,
}
