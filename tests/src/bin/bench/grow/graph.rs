//! A graph of how long calls take with a growing number of pods, as SVG and as PNG.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;

use anyhow::Context;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use crate::grow::Growth;

const SIZE: (u32, u32) = (900, 520);
const FONT: &str = "sans-serif";
const NAME: &str = "grow";

/// The lines: the row of samples, the label and the colour.
const LINES: [(&str, RGBColor); 3] = [
    ("pod up", RGBColor(31, 119, 180)),
    ("pod down", RGBColor(214, 96, 77)),
    ("ExecSync true", RGBColor(77, 146, 33)),
];

/// One line of the graph.
struct Line {
    label: String,
    color: RGBColor,
    points: Vec<(f64, f64)>,
    /// Every runtime but the first is drawn with a thinner line.
    width: u32,
}

/// Draws the graph into a directory, with text in the font from that file.
pub(crate) fn draw(growth: &Growth, directory: &Path, font: &Path) -> anyhow::Result<()> {
    let font = fs::read(font).with_context(|| format!("read {}", font.display()))?;
    // The library wants the font for `'static`, and this program ends soon.
    let registered = register_font(FONT, FontStyle::Normal, font.leak());
    anyhow::ensure!(registered.is_ok(), "the font cannot be read");
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let lines = lines(growth);
    let svg = directory.join(format!("{NAME}.svg"));
    draw_on(&SVGBackend::new(&svg, SIZE).into_drawing_area(), &lines)?;
    let mut pixels = vec![0; SIZE.0 as usize * SIZE.1 as usize * 3];
    draw_on(&BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area(), &lines)?;
    write_png(&directory.join(format!("{NAME}.png")), &pixels)
}

fn lines(growth: &Growth) -> Vec<Line> {
    let mut lines = Vec::new();
    for (index, grown) in growth.runtimes.iter().enumerate() {
        for (row, color) in LINES {
            let point = |step: &crate::grow::step::Step| Some((step.pods as f64, step.quantile(row, 0.5)?));
            let points: Vec<_> = grown.steps.iter().filter_map(point).collect();
            if !points.is_empty() {
                let label = format!("{row}, {}", grown.name);
                lines.push(Line { label, color, points, width: if index == 0 { 3 } else { 1 } });
            }
        }
    }
    lines
}

fn draw_on<B: DrawingBackend>(area: &DrawingArea<B, Shift>, lines: &[Line]) -> anyhow::Result<()>
where
    B::ErrorType: 'static,
{
    let all = || lines.iter().flat_map(|line| &line.points);
    let most = all().map(|(pods, _)| *pods).fold(1.0, f64::max);
    let least_ms = all().map(|(_, ms)| *ms).fold(1.0, f64::min);
    let most_ms = all().map(|(_, ms)| *ms).fold(10.0, f64::max);
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(area)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..most, (least_ms / 2.0..most_ms * 2.0).log_scale())?;
    let words = (FONT, 15);
    chart
        .configure_mesh()
        .max_light_lines(0)
        .x_desc("pods that are running meanwhile")
        .y_desc("milliseconds, median")
        .x_label_formatter(&|pods| format!("{pods:.0}"))
        .y_label_formatter(&|ms| ms.to_string())
        .label_style(words)
        .draw()?;
    for line in lines {
        let style = line.color.stroke_width(line.width);
        let drawn = chart.draw_series(LineSeries::new(line.points.iter().copied(), style))?;
        drawn.label(&line.label).legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], style));
        let radius = line.width + 2;
        chart
            .draw_series(line.points.iter().map(|point| Circle::new(*point, radius, line.color.filled())))?;
    }
    let mut legend = chart.configure_series_labels();
    legend.label_font(words).background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3));
    legend.position(SeriesLabelPosition::UpperRight).draw()?;
    area.present()?;
    Ok(())
}

fn write_png(path: &Path, pixels: &[u8]) -> anyhow::Result<()> {
    let file = File::create(path).with_context(|| format!("make {}", path.display()))?;
    let mut encoder = png::Encoder::new(BufWriter::new(file), SIZE.0, SIZE.1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().context("write a PNG")?;
    writer.write_image_data(pixels).context("write a PNG")?;
    writer.finish().context("write a PNG")
}
