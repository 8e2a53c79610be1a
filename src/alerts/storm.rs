//! When much happens at once it is one message: a person reads one summary, and nobody reads two hundred messages.

use std::{collections::VecDeque, time::Duration};

use crate::observed::Moment;

/// So many messages about tenants in a [`WINDOW`] are told one by one.
const LIMIT: usize = 5;
/// A minute: also the time for which what follows a summary is gathered for the next one.
const WINDOW: Duration = Duration::from_secs(60);

/// What is told of tenants lately.
#[derive(Debug, Default)]
pub(super) struct Storm {
    told: VecDeque<Moment>,
    until: Option<Moment>,
}

/// How what is to be told now is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// A message each.
    OneByOne,
    /// One message for all.
    Together,
    /// Later, with what follows.
    Later,
}

impl Storm {
    /// `count` things are to be told at `now`.
    pub(super) fn how(&mut self, count: usize, now: Moment) -> How {
        if count == 0 {
            return How::OneByOne;
        }
        if self.until.is_some_and(|until| now < until) {
            return How::Later;
        }
        self.told.retain(|&at| now.since(at) < WINDOW);
        if self.told.len() + count <= LIMIT {
            self.told.extend(std::iter::repeat_n(now, count));
            self.until = None;
            return How::OneByOne;
        }
        self.told.push_back(now);
        self.until = Some(now + WINDOW);
        How::Together
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_a_minute_are_told_one_by_one_and_what_is_more_is_gathered() {
        let mut storm = Storm::default();
        let at = |second: u64| Moment::from_millis(1_000_000 + second * 1_000);
        assert_eq!([storm.how(2, at(0)), storm.how(3, at(1))], [How::OneByOne; 2]);
        assert_eq!(storm.how(1, at(2)), How::Together, "the sixth");
        assert_eq!([storm.how(1, at(3)), storm.how(40, at(61))], [How::Later; 2]);
        assert_eq!(storm.how(40, at(62)), How::Together);
        assert_eq!(storm.how(1, at(121)), How::Later);
        assert_eq!(storm.how(1, at(122)), How::OneByOne, "it is over");
        assert_eq!(Storm::default().how(200, at(0)), How::Together, "and the first of a storm waits for nothing");
    }
}
