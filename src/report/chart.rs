//! Charts as plain data.

/// A chart: its data, what its axes mean, and what is said about it. It is drawn as SVG, with its data as CSV.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    /// A short heading.
    pub title: String,
    /// What to see in it, below the chart.
    pub caption: String,
    /// What is drawn.
    pub kind: Kind,
    /// The horizontal axis. For [`Kind::Intervals`] and [`Kind::Bars`] that of the values.
    pub x: Axis,
    /// The vertical axis. For [`Kind::Intervals`] and [`Kind::Bars`] only its label is used, as a heading of the rows.
    pub y: Axis,
    /// Name of the CSV file without `.csv`; made of the title where empty.
    pub csv: String,
}

/// What an axis shows and how values are laid out on it.
#[derive(Clone, Debug, Default)]
pub struct Axis {
    /// The quantity and its unit.
    pub label: String,
    /// How values are laid out.
    pub scale: Scale,
}

/// How an axis lays out values.
#[derive(Clone, Debug, Default)]
pub enum Scale {
    /// Equal distances for equal differences.
    #[default]
    Linear,
    /// Equal distances for equal ratios; values that are not above 0 are left out of the drawing.
    Log,
    /// Named places, for the horizontal axis of [`Kind::Lines`]: the value `i` is at the place of name `i`, and
    /// points are not joined.
    Category(Vec<String>),
}

impl Axis {
    /// A linear axis.
    pub fn linear(label: impl Into<String>) -> Axis {
        Axis { label: label.into(), scale: Scale::Linear }
    }

    /// A logarithmic axis.
    pub fn log(label: impl Into<String>) -> Axis {
        Axis { label: label.into(), scale: Scale::Log }
    }

    /// An axis of named places.
    pub fn category(label: impl Into<String>, names: Vec<String>) -> Axis {
        Axis { label: label.into(), scale: Scale::Category(names) }
    }

    pub(super) fn is_log(&self) -> bool {
        matches!(self.scale, Scale::Log)
    }
}

/// What a chart draws. Values that are not finite are left out of every drawing.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Curves, or points with error bars.
    Lines {
        /// The curves, in the order of the legend.
        series: Vec<Series>,
        /// Horizontal lines to compare with.
        references: Vec<Reference>,
    },
    /// Estimates with their errors, one below the other, beside a line at 0, or at 1 on a
    /// logarithmic axis (a forest plot).
    Intervals {
        /// The estimates, from the top.
        rows: Vec<Interval>,
    },
    /// Distributions over the same bins, as steps.
    Histogram {
        /// Ends of the bins: one more than there are bins, rising.
        edges: Vec<f64>,
        /// The distributions.
        distributions: Vec<Distribution>,
        /// Vertical lines to compare with.
        references: Vec<Reference>,
    },
    /// Points in groups.
    Scatter {
        /// The groups, each with a colour and a shape of its own.
        groups: Vec<Group>,
    },
    /// Shares of a limit, from 0 to 1, with the least that is wanted of each.
    Bars {
        /// The bars, from the top.
        bars: Vec<Bar>,
    },
}

impl Default for Kind {
    fn default() -> Kind {
        Kind::Lines { series: Vec::new(), references: Vec::new() }
    }
}

/// A curve.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points, in the order in which they are joined.
    pub points: Vec<Point>,
}

/// A point of a curve.
#[derive(Clone, Copy, Debug, Default)]
pub struct Point {
    /// Where it is on the horizontal axis.
    pub x: f64,
    /// Where it is on the vertical axis.
    pub y: f64,
    /// Half the width of its error: a bar, or a band on a curve of many points.
    pub error: Option<f64>,
}

/// A line across a chart, to compare with.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    /// What it stands for.
    pub label: String,
    /// Where it is.
    pub at: f64,
}

/// A named estimate.
#[derive(Clone, Debug, Default)]
pub struct Interval {
    /// What is estimated.
    pub name: String,
    /// The estimate.
    pub estimate: f64,
    /// Half the width of its error.
    pub error: Option<f64>,
}

/// A distribution over the bins of a histogram.
#[derive(Clone, Debug, Default)]
pub struct Distribution {
    /// Its name in the legend.
    pub name: String,
    /// Its height in each bin.
    pub heights: Vec<f64>,
}

/// Points that belong together.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// Its name in the legend.
    pub name: String,
    /// The points, as (x, y).
    pub points: Vec<(f64, f64)>,
}

/// A share of a limit.
#[derive(Clone, Debug, Default)]
pub struct Bar {
    /// What is measured.
    pub name: String,
    /// The share, from 0 to 1.
    pub value: f64,
    /// The least that is wanted.
    pub floor: Option<f64>,
}

impl Chart {
    pub(super) fn heading(&self) -> &str {
        if self.title.is_empty() { "Chart" } else { &self.title }
    }
}

impl Bar {
    pub(super) fn is_under(&self) -> bool {
        self.floor.is_some_and(|floor| self.value < floor)
    }
}
