//! A table with a column for each number of pods, beside the targets.

use crate::grow::figures::{FIGURES, FLAT, Figure};
use crate::grow::step::Step;
use crate::grow::{Grown, Growth};
use crate::results::{number, pushed};

/// The report in Markdown, for people.
pub(crate) fn table(growth: &Growth) -> String {
    let columns: Vec<(&Grown, &Step)> =
        growth.runtimes.iter().flat_map(|grown| grown.steps.iter().map(move |step| (grown, step))).collect();
    let names = columns.iter().map(|(grown, step)| format!("{} {}", grown.name, step.pods)).collect();
    let mut text = String::new();
    line(&mut text, "beside so many pods", names, "wanted");
    line(&mut text, "---", columns.iter().map(|_column| "---:".to_owned()).collect(), "---");
    for figure in &FIGURES {
        of_figure(&mut text, &columns, figure);
    }
    for grown in &growth.runtimes {
        if let Some(reason) = &grown.stopped {
            let pods = grown.steps.last().map_or(0, |step| step.pods);
            pushed(&mut text, format_args!("\n{} stopped at {pods} pods: {reason}\n", grown.name));
        }
    }
    text
}

fn of_figure(text: &mut String, columns: &[(&Grown, &Step)], figure: &Figure) {
    let value = |step: &Step| step.quantile(figure.row, figure.quantile).map(|value| value * figure.scale);
    let values: Vec<_> = columns.iter().map(|(_, step)| value(step)).collect();
    let label = if figure.unit.is_empty() {
        figure.row.to_owned()
    } else {
        format!("{}, {}", figure.row, figure.unit)
    };
    line(text, &label, values.iter().map(|value| cell(*value)).collect(), figure.wanted);
    if figure.flat {
        let first = columns.iter().map(|(grown, _)| grown.steps.first().and_then(value));
        let times = values.iter().zip(first).map(|(value, first)| cell(quotient(*value, first))).collect();
        line(text, &format!("{} ÷ beside none", figure.row), times, FLAT);
    }
    let Some((whole, wanted)) = figure.floor else { return };
    let floors: Vec<_> = columns.iter().map(|(_, step)| step.floor(whole)).collect();
    line(
        text,
        &format!("floor of {whole} beside as many, ms"),
        floors.iter().copied().map(cell).collect(),
        "",
    );
    let times = values.iter().zip(floors).map(|(value, floor)| cell(quotient(*value, floor))).collect();
    line(text, &format!("{} ÷ this floor", figure.row), times, wanted);
}

fn line(text: &mut String, label: &str, cells: Vec<String>, wanted: &str) {
    pushed(text, format_args!("| {label:<42} |"));
    for cell in cells {
        pushed(text, format_args!(" {cell:>8} |"));
    }
    pushed(text, format_args!(" {wanted} |\n"));
}

fn quotient(value: Option<f64>, by: Option<f64>) -> Option<f64> {
    value.zip(by.filter(|by| *by > 0.0)).map(|(value, by)| value / by)
}

fn cell(value: Option<f64>) -> String {
    value.map_or_else(String::new, number)
}

#[cfg(test)]
mod tests {
    use super::{quotient, table};
    use crate::grow::step::Step;
    use crate::grow::{Grown, Growth};

    #[test]
    fn a_step_is_a_column_and_its_figures_are_related_to_the_first() {
        let mut steps = [Step::at(0, "ours"), Step::at(100, "ours")];
        steps[0].note_sample("pod up", 2.0);
        steps[1].note_sample("pod up", 5.0);
        steps[0].note_floor("pod up", 1.0);
        steps[1].note_floor("pod up", 2.0);
        let grown = Grown { name: "ours".into(), steps: steps.into(), stopped: Some("EMFILE".into()) };
        let growth = Growth { runtimes: vec![grown] };
        let text = table(&growth);
        let cells = |label: &str| -> Vec<&str> {
            let line = text.lines().find(|line| line.contains(label)).unwrap();
            line.split('|').skip(2).map(str::trim).collect()
        };
        assert_eq!(cells("beside so many pods")[..2], ["ours 0", "ours 100"]);
        assert_eq!(cells("pod up, ms")[..2], ["2.00", "5.00"]);
        assert_eq!(cells("pod up ÷ beside none")[..3], ["1.00", "2.50", "≤ 1.2"]);
        assert_eq!(cells("floor of pod up")[..2], ["1.00", "2.00"]);
        assert_eq!(cells("pod up ÷ this floor")[..2], ["2.00", "2.50"]);
        assert_eq!(cells("StopContainer, ms")[..2], ["", ""]);
        assert!(text.ends_with("ours stopped at 100 pods: EMFILE\n"), "{text}");
    }

    #[test]
    fn nothing_divided_is_nothing() {
        assert_eq!(quotient(Some(1.0), Some(0.0)), None);
        assert_eq!(quotient(None, Some(1.0)), None);
    }
}
