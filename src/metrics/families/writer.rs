//! Families of one shape each, written in one line where they are named.

use std::{collections::HashMap, fmt};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet},
    metrics::{MetricType, exemplar::Exemplar},
    registry::Unit,
};

/// Where they go.
pub(super) struct Writer<'a>(pub(super) DescriptorEncoder<'a>);

/// What the encoder wants to be told of exemplars: there are none.
const NO_EXEMPLAR: Option<&Exemplar<NoLabelSet, u64>> = None;
const NO_EXEMPLARS: Option<&HashMap<usize, Exemplar<NoLabelSet, f64>>> = None;

/// The names of a family: without prefix, unit and `_total`, which follow from the rest.
pub(super) struct Name {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
}

/// Of no unit.
pub(super) fn name(name: &'static str, help: &'static str) -> Name {
    Name { name, help, unit: None }
}

/// Of bytes.
pub(super) fn bytes(name: &'static str, help: &'static str) -> Name {
    Name { name, help, unit: Some(Unit::Bytes) }
}

/// Of seconds.
pub(super) fn seconds(name: &'static str, help: &'static str) -> Name {
    Name { name, help, unit: Some(Unit::Seconds) }
}

impl Writer<'_> {
    pub(super) fn gauge(&mut self, of: Name, value: impl EncodeGaugeValue) -> fmt::Result {
        self.0.encode_descriptor(of.name, of.help, of.unit.as_ref(), MetricType::Gauge)?.encode_gauge(&value)
    }

    pub(super) fn counter(&mut self, of: Name, value: impl EncodeCounterValue) -> fmt::Result {
        let mut family = self.0.encode_descriptor(of.name, of.help, of.unit.as_ref(), MetricType::Counter)?;
        family.encode_counter(&value, NO_EXEMPLAR)
    }

    /// One value that stands in labels.
    pub(super) fn info<const N: usize>(&mut self, of: Name, labels: [(&str, &str); N]) -> fmt::Result {
        self.0.encode_descriptor(of.name, of.help, of.unit.as_ref(), MetricType::Info)?.encode_info(&labels)
    }

    /// A gauge for each of `each`, which has these labels.
    pub(super) fn gauges<'l, const N: usize, V: EncodeGaugeValue>(
        &mut self,
        of: Name,
        labels: [&str; N],
        each: impl IntoIterator<Item = ([&'l str; N], V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(of.name, of.help, of.unit.as_ref(), MetricType::Gauge)?;
        for (values, value) in each {
            family.encode_family(&labelled(labels, values))?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// The same of counters.
    pub(super) fn counters<'l, const N: usize, V: EncodeCounterValue>(
        &mut self,
        of: Name,
        labels: [&str; N],
        each: impl IntoIterator<Item = ([&'l str; N], V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(of.name, of.help, of.unit.as_ref(), MetricType::Counter)?;
        for (values, value) in each {
            family.encode_family(&labelled(labels, values))?.encode_counter(&value, NO_EXEMPLAR)?;
        }
        Ok(())
    }

    /// `buckets`: the upper end of each, the last infinite, and what is in it alone.
    pub(super) fn histogram(&mut self, of: Name, sum: f64, buckets: &[(f64, u64)]) -> fmt::Result {
        let mut family = self.0.encode_descriptor(of.name, of.help, of.unit.as_ref(), MetricType::Histogram)?;
        family.encode_histogram(sum, total(buckets), buckets, NO_EXEMPLARS)
    }

    /// A histogram for each of `each`, which has this label.
    pub(super) fn histograms<'l, const N: usize>(
        &mut self,
        of: Name,
        label: &str,
        each: impl IntoIterator<Item = (&'l str, f64, [(f64, u64); N])>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(of.name, of.help, of.unit.as_ref(), MetricType::Histogram)?;
        for (value, sum, buckets) in each {
            family.encode_family(&[(label, value)])?.encode_histogram(sum, total(&buckets), &buckets, NO_EXEMPLARS)?;
        }
        Ok(())
    }
}

fn labelled<'l, const N: usize>(labels: [&'l str; N], values: [&'l str; N]) -> [(&'l str, &'l str); N] {
    std::array::from_fn(|at| (labels[at], values[at]))
}

fn total(buckets: &[(f64, u64)]) -> u64 {
    buckets.iter().map(|(_, count)| count).sum()
}
