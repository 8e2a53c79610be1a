//! The sq programs of this host: the desired one, the one that everybody had before it, and one that was given up.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::{
    desired::{self, SqSource},
    instance::binary::SqBinary,
};

/// Which programs there are, and which of them is the way to go.
#[derive(Debug)]
pub struct Programs {
    wanted: SqSource,
    kept: Kept,
    found: HashMap<String, SqBinary>,
}

/// What of it survives the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The program that has proved itself on this host; none before the first one.
    pub in_force: Option<SqSource>,
    /// The last roll-out, where it went back.
    pub given_up: Option<GivenUp>,
}

/// A program that crashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenUp {
    /// The program.
    pub program: String,
    /// Tenants whose instance crashed on it.
    pub crashed: usize,
    /// Tenants that had been given it.
    pub of: usize,
}

impl GivenUp {
    /// What `sq-agent confirm` takes to try it once more.
    pub fn hash(&self) -> String {
        desired::hash(&format!("{} {} {}", self.program, self.crashed, self.of)).chars().take(12).collect()
    }
}

impl Programs {
    /// `wanted` by tenants.toml; `kept` from the agent before.
    pub fn new(wanted: SqSource, kept: Kept) -> Self {
        Self { wanted, kept, found: HashMap::new() }
    }

    /// tenants.toml names `wanted`: a program that was given up and is named no more may come again later.
    pub fn want(&mut self, wanted: SqSource) {
        self.kept.given_up.take_if(|given_up| given_up.program != wanted.identity());
        self.wanted = wanted;
    }

    /// Everybody is to have this one in the end.
    pub fn target(&self) -> &SqSource {
        let given_up = self.kept.given_up.as_ref().is_some_and(|given_up| given_up.program == self.wanted.identity());
        self.kept.in_force.as_ref().filter(|_| given_up).unwrap_or(&self.wanted)
    }

    /// Who has none yet, starts with this one.
    pub fn proved(&self) -> &SqSource {
        self.kept.in_force.as_ref().unwrap_or(&self.wanted)
    }

    /// The programs that are to be found.
    pub fn needed(&self) -> Vec<SqSource> {
        let (target, proved) = (self.target().clone(), self.proved().clone());
        if target == proved { vec![target] } else { vec![proved, target] }
    }

    /// The program named `identity` is there.
    pub fn insert(&mut self, identity: String, program: SqBinary) {
        self.found.insert(identity, program);
    }

    /// The program named `identity`, once it is there.
    pub fn get(&self, identity: &str) -> Option<&SqBinary> {
        self.found.get(identity)
    }

    /// Whether nothing can be started at all.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// The target has proved itself.
    pub fn settle(&mut self) {
        self.kept.in_force = Some(self.target().clone());
    }

    /// The target is given up.
    pub fn give_up(&mut self, crashed: usize, of: usize) {
        self.kept.given_up = Some(GivenUp { program: self.wanted.identity(), crashed, of });
    }

    /// What was given up is tried once more.
    pub fn try_again(&mut self) {
        self.kept.given_up = None;
    }

    /// The roll-out that went back, if tenants.toml still names its program.
    pub fn given_up(&self) -> Option<&GivenUp> {
        self.kept.given_up.as_ref()
    }

    /// For the next agent.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(version: &str) -> SqSource {
        SqSource::Version(version.into())
    }

    #[test]
    fn what_was_given_up_is_not_the_target_until_another_is_named_or_it_is_tried_again() {
        let mut programs = Programs::new(version("0.7.0"), Kept { in_force: Some(version("0.6.0")), given_up: None });
        assert_eq!(programs.target(), &version("0.7.0"));
        programs.give_up(1, 1);
        assert_eq!(programs.target(), &version("0.6.0"));
        assert_eq!(programs.needed(), [version("0.6.0")], "nobody is to have the other one");
        let kept = programs.kept().clone();
        assert_eq!(Programs::new(version("0.7.0"), kept).target(), &version("0.6.0"), "a new agent knows it too");
        programs.want(version("0.7.1"));
        assert_eq!(programs.target(), &version("0.7.1"));
        programs.want(version("0.7.0"));
        assert_eq!(programs.target(), &version("0.7.0"), "named once more, it is tried once more");
        programs.give_up(1, 1);
        programs.try_again();
        assert_eq!(programs.target(), &version("0.7.0"));
    }

    #[test]
    fn the_first_program_of_a_host_is_proved_by_being_the_only_one() {
        let programs = Programs::new(version("0.6.0"), Kept::default());
        assert_eq!((programs.target(), programs.proved()), (&version("0.6.0"), &version("0.6.0")));
        assert_eq!(programs.needed().len(), 1);
    }
}
