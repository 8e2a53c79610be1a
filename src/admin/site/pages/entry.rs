//! The way in.

use maud::{Markup, html};

use super::shell::alone;

/// What it says beside the form.
pub(in crate::admin::site) struct Entry<'a> {
    /// Where it goes from here.
    pub(in crate::admin::site) to: &'a str,
    /// The name that was given.
    pub(in crate::admin::site) name: &'a str,
    /// Why the last try came to nothing.
    pub(in crate::admin::site) wrong: Option<&'a str>,
    /// A page of somebody else's led here: browsers show no cookie then, also that of somebody who is logged in.
    pub(in crate::admin::site) is_led: bool,
}

impl Entry<'_> {
    pub(in crate::admin::site) fn html(&self) -> Markup {
        let Self { to, name, wrong, is_led } = self;
        let content = html! {
            h1 { "Log in" }
            @if *is_led { p { "If you are logged in already: " a href=(to) { "go on to what you asked for" } "." } }
            @if let Some(wrong) = wrong { p .said.bad #wrong role="alert" { (wrong) } }
            form .stack method="post" action="/login" {
                input type="hidden" name="to" value=(to);
                label for="key" { "Admin key" }
                input #key name="key" type="password" autocomplete="current-password" required autofocus spellcheck="false"
                    aria-describedby={ "key-hint" @if wrong.is_some() { " wrong" } };
                p .hint #key-hint { "The line in the file that " code { "key_file" } " under " code { "[admin]" } " names." }
                label for="name" { "Your name " span .of { "(optional)" } }
                input #name name="name" value=(name) autocomplete="username" maxlength="64" pattern="[A-Za-z0-9][A-Za-z0-9 ._@+\\-]*" aria-describedby="name-hint";
                p .hint #name-hint { "It stands beside what you change, in the record and in commits." }
                button .primary type="submit" { "Log in" }
            }
        };
        alone("Log in", &content)
    }
}
