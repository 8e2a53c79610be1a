//! The question before something is done: a page of its own, so that it works everywhere.

use maud::{Markup, html};

use super::{super::session::Visitor, Part, shell::token};

/// What is asked.
pub(in crate::admin::site) struct Sure<'a> {
    /// What happens, a sentence each.
    pub(in crate::admin::site) follows: &'a [String],
    /// What the button says.
    pub(in crate::admin::site) button: &'a str,
    /// It takes something away from somebody.
    pub(in crate::admin::site) is_grave: bool,
    /// Where the form goes.
    pub(in crate::admin::site) action: &'a str,
    /// A further field of it.
    pub(in crate::admin::site) hash: Option<&'a str>,
    /// Where one goes who is not.
    pub(in crate::admin::site) back: &'a str,
    pub(in crate::admin::site) visitor: &'a Visitor,
}

impl Sure<'_> {
    pub(in crate::admin::site) fn part(&self) -> Part {
        Part::fixed("sure", self.html())
    }

    fn html(&self) -> Markup {
        html! {
            section .card aria-label="Confirmation" {
                @for sentence in self.follows { p { (sentence) } }
                form .stack method="post" action=(self.action) {
                    (token(self.visitor))
                    @if let Some(hash) = self.hash { input type="hidden" name="hash" value=(hash); }
                    label for="reason" { "Why " span .of { "(optional, for the record)" } }
                    input #reason name="reason" maxlength="256" autocomplete="off";
                    div .buttons {
                        button .{ "primary " @if self.is_grave { "grave" } } type="submit" { (self.button) }
                        a .button href=(self.back) { "Cancel" }
                    }
                }
            }
        }
    }
}
