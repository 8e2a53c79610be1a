//! The loop's part in certificates: has them asked for, says when the one in force ends, tells people.

use std::time::Duration;

use super::{core::Core, world::World};
use crate::{
    acme::News,
    admin::status::{AcmeStatus, CertificateStatus},
    certificate::{Facts, Urgency},
    proxy::front::Source,
    store::rfc3339,
};

/// What the loop knows of them.
#[derive(Debug, Default)]
pub(super) struct Certificates {
    /// Up to what has been told of the one that ends then.
    told: Option<(u64, Urgency)>,
    asks: bool,
    next_try: Option<u64>,
    last_error: Option<(u64, String)>,
}

impl<W: World> Core<W> {
    /// By the clock: has a certificate asked for as tenants.toml wants, and looks at the end of the one in force.
    pub(super) fn look_at_certificates(&mut self) {
        self.world.ask_for_certificates(self.desired.proxy.acme.as_ref(), self.is_stopping());
        let now = self.world.unix_now();
        let Some((facts, source)) = self.world.certificate() else { return };
        // That one is made anew in time by each look at the settings.
        if source == Source::SelfSigned {
            return;
        }
        let urgency = facts.urgency(now);
        let told = self.certificates.told.filter(|(end, _)| *end == facts.not_after).map_or(Urgency::None, |(_, told)| told);
        if urgency > told {
            let (kind, text) = end(&facts, urgency, source);
            tracing::error!(kind, detail = text, "the certificate needs somebody");
            self.note_event(None, kind, &text);
        }
        self.certificates.told = Some((facts.not_after, urgency.max(told)));
    }

    pub(super) fn hear_of_certificates(&mut self, news: News) {
        let now = self.world.unix_now();
        self.certificates.asks = news == News::Asks || (self.certificates.asks && news == News::Offers);
        match news {
            News::Offers => self.renew_settings(),
            News::Asks => tracing::info!("a certificate is asked for"),
            News::Waits(names, due) => {
                tracing::debug!(?names, due, "the certificate holds for a while");
                (self.certificates.next_try, self.certificates.last_error) = (Some(due), None);
            }
            News::Obtained(facts) => {
                self.certificates.last_error = None;
                self.renew_settings();
                let text =
                    facts.map_or_else(String::new, |facts| format!("{}, until {}", facts.names.join(", "), rfc3339(facts.not_after)));
                tracing::info!(certificate = text, "there is another certificate");
                self.note_event(None, "certificate_obtained", &text);
            }
            News::Failed(why, pause) => {
                tracing::error!(why, again_in_s = pause.as_secs(), "no certificate");
                self.certificates.next_try = Some(now + pause.as_secs());
                // Once a cause: a server that is away for a day is one event, not forty.
                let known = self.certificates.last_error.as_ref().is_some_and(|(_, known)| *known == why);
                if !known {
                    self.note_event(
                        None,
                        "certificate_failed",
                        &format!("{why}; next try in {}", humantime::format_duration(whole(pause))),
                    );
                }
                self.certificates.last_error = Some((now, why));
            }
        }
    }

    pub(super) fn certificate_status(&self) -> Option<CertificateStatus> {
        let now = self.world.unix_now();
        self.world.certificate().map(|(facts, source)| CertificateStatus {
            source: source.word().to_owned(),
            names: facts.names.clone(),
            not_after: rfc3339(facts.not_after),
            days_left: facts.days_left(now),
            ends_soon: source != Source::SelfSigned && facts.urgency(now) != Urgency::None,
        })
    }

    pub(super) fn acme_status(&self) -> Option<AcmeStatus> {
        let acme = self.desired.proxy.acme.as_ref()?;
        let Certificates { asks, next_try, ref last_error, .. } = self.certificates;
        Some(AcmeStatus {
            directory: acme.directory.clone(),
            domains: acme.domains.clone(),
            asking: asks,
            next_try: next_try.filter(|_| !asks).map(rfc3339),
            last_error: last_error.as_ref().map(|(_, why)| why.clone()),
            last_error_at: last_error.as_ref().map(|(at, _)| rfc3339(*at)),
        })
    }
}

fn whole(pause: Duration) -> Duration {
    Duration::from_secs(pause.as_secs())
}

/// The event of a certificate that ends: its kind, and cause and remedy.
pub(super) fn end(facts: &Facts, urgency: Urgency, source: Source) -> (&'static str, String) {
    let (names, at) = (facts.names.join(", "), rfc3339(facts.not_after));
    let remedy = match source {
        Source::Acme => "see proxy.acme in `sq-agent status --json` for why it is not renewed",
        Source::Files | Source::SelfSigned => "put another one into the files that [proxy.tls] names",
    };
    match urgency {
        Urgency::Expired => ("certificate_expired", format!("the certificate of {names} ended at {at}, and no client takes it: {remedy}")),
        Urgency::Soon | Urgency::None => ("certificate_expires", format!("the certificate of {names} ends at {at}: {remedy}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_an_end_names_whose_when_and_what_to_do() {
        let facts = Facts { not_before: 0, not_after: 86_400, names: vec!["a.example".into()] };
        let (kind, text) = end(&facts, Urgency::Soon, Source::Files);
        assert_eq!(kind, "certificate_expires");
        assert!(text.contains("a.example") && text.contains("1970-01-02") && text.contains("[proxy.tls]"), "{text}");
        assert_eq!(end(&facts, Urgency::Expired, Source::Acme).0, "certificate_expired");
    }
}
