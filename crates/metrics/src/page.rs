//! The page that is served, as its sources see it. Names are whole, and have their unit at the end
//! (`_seconds`, `_bytes`); that of a counter comes without `_total`, which is added.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::histogram::Histogram;

/// Something that has figures.
pub trait Source: fmt::Debug + Send + Sync + 'static {
    /// Writes them, each family once. It is called in the server's thread, and waits for nobody.
    ///
    /// # Errors
    /// Those of the page.
    fn write(&self, page: &mut Page<'_>) -> fmt::Result;
}

/// A page that is being written.
#[derive(Debug)]
pub struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    /// What there is now.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        self.family(name, help, MetricType::Gauge)?.encode_gauge(&value)
    }

    /// The same for each of several values of one label.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn gauges<'v>(
        &mut self,
        (name, label): (&str, &str),
        help: &str,
        values: impl IntoIterator<Item = (&'v str, usize)>,
    ) -> fmt::Result {
        let mut family = self.family(name, help, MetricType::Gauge)?;
        values
            .into_iter()
            .try_for_each(|(of, value)| family.encode_family(&[(label, of)])?.encode_gauge(&value))
    }

    /// How much there has been since the start.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn counter(&mut self, name: &str, help: &str, value: impl EncodeCounterValue) -> fmt::Result {
        count(&mut self.family(name, help, MetricType::Counter)?, &value)
    }

    /// The same for each of several values of one label.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn counters<'v>(
        &mut self,
        (name, label): (&str, &str),
        help: &str,
        values: impl IntoIterator<Item = (&'v str, u64)>,
    ) -> fmt::Result {
        let mut family = self.family(name, help, MetricType::Counter)?;
        values
            .into_iter()
            .try_for_each(|(of, value)| count(&mut family.encode_family(&[(label, of)])?, &value))
    }

    /// How often there have been values in which range.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) -> fmt::Result {
        histogram.encode(self.family(name, help, MetricType::Histogram)?)
    }

    fn family<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        // As the library ends the texts that it registers.
        self.0.encode_descriptor(name, &format!("{help}."), None, kind)
    }
}

fn count(family: &mut MetricEncoder<'_>, value: &impl EncodeCounterValue) -> fmt::Result {
    family.encode_counter::<NoLabelSet, _, f64>(value, None)
}

/// A source as the library sees it.
#[derive(Debug)]
pub(crate) struct Written<S>(pub(crate) S);

impl<S: Source> Collector for Written<S> {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.write(&mut Page(encoder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    #[derive(Debug)]
    struct Everything;

    impl Source for Everything {
        fn write(&self, page: &mut Page<'_>) -> fmt::Result {
            page.gauge("a_bytes", "Now", 7_u64)?;
            page.gauges(("b", "state"), "States", [("up", 1), ("do\"wn", 2)])?;
            page.counter("c_seconds", "Ever", 1.5)?;
            page.counters(("d", "result"), "Ends", [("failed", 3)])?;
            let took = Histogram::new([1.0]);
            took.observe(0.5);
            page.histogram("e_seconds", "Took", &took)
        }
    }

    #[test]
    fn each_kind_of_figure_is_written_as_its_format_demands() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Written(Everything)));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let expected = "# HELP a_bytes Now.\n# TYPE a_bytes gauge\na_bytes 7\n\
            # HELP b States.\n# TYPE b gauge\nb{state=\"up\"} 1\nb{state=\"do\\\"wn\"} 2\n\
            # HELP c_seconds Ever.\n# TYPE c_seconds counter\nc_seconds_total 1.5\n\
            # HELP d Ends.\n# TYPE d counter\nd_total{result=\"failed\"} 3\n\
            # HELP e_seconds Took.\n# TYPE e_seconds histogram\ne_seconds_sum 0.5\ne_seconds_count 1\n\
            e_seconds_bucket{le=\"1.0\"} 1\ne_seconds_bucket{le=\"+Inf\"} 1\n# EOF\n";
        assert_eq!(text, expected);
    }
}
