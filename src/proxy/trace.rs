//! W3C Trace Context (`traceparent`, `tracestate`): which trace a request belongs to, for the log and for sq. Pure.
//!
//! The proxy adds no span of its own: what is valid goes on as it came, and what is not is dropped, as if there were none (W3C Trace Context,
//! section 3.2.2 and 3.3).

use http::{HeaderMap, HeaderValue};

/// Length of a `traceparent` of version 00.
const LENGTH: usize = 55;
/// Longest of a later version, which may have more behind that.
const MAX_PARENT: usize = 128;
/// Longest `tracestate`, bytes: as much as everybody has to pass on (section 3.3.1.5).
const MAX_STATE: usize = 512;
/// Where the trace id stands.
const TRACE_ID: std::ops::Range<usize> = 3..35;

/// A trace, as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TraceId([u8; 32]);

impl TraceId {
    pub(crate) fn as_str(&self) -> &str {
        // Hexadecimal digits are.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// What a request says of its trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trace {
    id: TraceId,
    parent: HeaderValue,
    /// Empty where there is none.
    state: Vec<u8>,
}

impl Trace {
    /// The trace that `headers` name by exactly one valid `traceparent`.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut sent = headers.get_all("traceparent").iter();
        let parent = sent.next().filter(|_| sent.next().is_none())?;
        Some(Self { id: trace_id(parent.as_bytes())?, parent: parent.clone(), state: state(headers).unwrap_or_default() })
    }

    pub(crate) fn id(&self) -> TraceId {
        self.id
    }

    /// Writes it as header lines.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let mut line = |name: &[u8], value: &[u8]| out.extend_from_slice(&[name, b": ", value, b"\r\n"].concat());
        line(b"traceparent", self.parent.as_bytes());
        if !self.state.is_empty() {
            line(b"tracestate", &self.state);
        }
    }
}

/// The trace id of a valid `traceparent`: `00-<32 digits>-<16 digits>-<2 digits>`, and more behind that in versions to come.
fn trace_id(value: &[u8]) -> Option<TraceId> {
    let (first, more) = value.split_at_checked(LENGTH)?;
    let mut parts = first.split(|&byte| byte == b'-');
    let [version, id, parent, flags] = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
    let hex = |part: &[u8], length| part.len() == length && part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let zero = |part: &[u8]| part.iter().all(|&byte| byte == b'0');
    let ends_well = match version {
        b"00" => more.is_empty(),
        b"ff" => false,
        _ => more.is_empty() || more.starts_with(b"-") && value.len() <= MAX_PARENT && more.iter().all(u8::is_ascii_graphic),
    };
    let valid = parts.next().is_none()
        && hex(version, 2)
        && hex(id, 32)
        && hex(parent, 16)
        && hex(flags, 2)
        && !zero(id)
        && !zero(parent)
        && ends_well;
    valid.then_some(TraceId(value.get(TRACE_ID)?.try_into().ok()?))
}

/// All `tracestate` lines as one, where that is short enough and plain.
fn state(headers: &HeaderMap) -> Option<Vec<u8>> {
    let lines: Vec<&[u8]> = headers.get_all("tracestate").iter().map(HeaderValue::as_bytes).filter(|line| !line.is_empty()).collect();
    let state = lines.join(&b","[..]);
    (state.len() <= MAX_STATE && state.iter().all(|byte| (0x20..0x7f).contains(byte))).then_some(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn of(parents: &[&str], states: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        parents.iter().for_each(|value| _ = headers.append("traceparent", HeaderValue::from_bytes(value.as_bytes()).unwrap()));
        states.iter().for_each(|value| _ = headers.append("tracestate", HeaderValue::from_bytes(value.as_bytes()).unwrap()));
        Trace::of(&headers).map(|trace| {
            let mut out = Vec::new();
            trace.write(&mut out);
            String::from_utf8(out).unwrap()
        })
    }

    #[test]
    fn a_valid_trace_goes_on_as_it_came_and_has_an_id() {
        assert_eq!(of(&[GOOD], &[]).unwrap(), format!("traceparent: {GOOD}\r\n"));
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", HeaderValue::from_static(GOOD));
        assert_eq!(Trace::of(&headers).unwrap().id().as_str(), "4bf92f3577b34da6a3ce929d0e0e4736");
        for later in [GOOD.replacen("00", "01", 1), format!("{}-what-is-to-come", GOOD.replacen("00", "cc", 1))] {
            assert_eq!(of(&[&later], &[]).unwrap(), format!("traceparent: {later}\r\n"));
        }
    }

    #[test]
    fn a_malformed_one_is_dropped_with_its_state() {
        let id = &GOOD[TRACE_ID];
        for bad in [
            "",
            "00",
            &GOOD[..54],
            &format!("{GOOD}-"),
            &format!("{GOOD}0"),
            &GOOD.replacen("00", "ff", 1),
            &GOOD.replacen("00", "0g", 1),
            &GOOD.to_uppercase(),
            &GOOD.replace(id, &"0".repeat(32)),
            &GOOD.replace("00f067aa0ba902b7", "0000000000000000"),
            &GOOD.replace('-', "_"),
            &GOOD.replace("4bf9", "4b-9"),
            &format!("{}.more", GOOD.replacen("00", "01", 1)),
            &format!("{}-{}", GOOD.replacen("00", "01", 1), "x".repeat(73)),
            &format!("{}-\u{e9}", GOOD.replacen("00", "01", 1)),
        ] {
            assert_eq!(of(&[bad], &["a=1"]), None, "{bad:?}");
        }
        assert_eq!(of(&[GOOD, GOOD], &[]), None, "two of them");
        assert_eq!(of(&[], &["a=1"]), None, "a state alone says nothing");
    }

    #[test]
    fn a_state_goes_with_it_where_it_is_short_and_plain() {
        let with = |states: &[&str]| of(&[GOOD], states).unwrap().strip_prefix(&format!("traceparent: {GOOD}\r\n")).unwrap().to_owned();
        assert_eq!(with(&["a=1", "", "b@c=2"]), "tracestate: a=1,b@c=2\r\n");
        assert_eq!(with(&[&"x".repeat(512)]), format!("tracestate: {}\r\n", "x".repeat(512)));
        assert_eq!([with(&[&"x".repeat(513)]), with(&["a=\u{e9}"]), with(&[""])], ["", "", ""]);
    }
}
