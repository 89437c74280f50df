//! Mean, median and confidence of repeated measurements.

use serde::Serialize;

/// Quantiles 0.975 of Student's t distribution for 1 to 30 degrees of freedom.
const T_975: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// A repeated measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// The values, in the order in which they were measured.
    pub values: Vec<f64>,
    /// Their mean.
    pub mean: f64,
    /// Their median.
    pub median: f64,
    /// Half the width of the 95 % confidence interval of the mean; 0 for a single value.
    pub half_width: f64,
}

impl Sample {
    /// Summarises values; none give zeroes.
    pub fn of(values: &[f64]) -> Sample {
        let n = values.len() as f64;
        if values.is_empty() {
            return Sample::default();
        }
        let mean = values.iter().sum::<f64>() / n;
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        let half_width = if values.len() > 1 {
            let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
            let t = T_975.get(values.len() - 2).copied().unwrap_or(1.96);
            t * (variance / n).sqrt()
        } else {
            0.0
        };
        Sample { values: values.to_vec(), mean, median, half_width }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_students() {
        // Five values with mean 10 and standard deviation 1.5811: 2.776 × 1.5811 / √5.
        let sample = Sample::of(&[8.0, 9.0, 10.0, 11.0, 12.0]);
        assert_eq!((sample.mean, sample.median), (10.0, 10.0));
        assert!((sample.half_width - 1.963).abs() < 0.001, "{}", sample.half_width);
        assert_eq!(Sample::of(&[3.0, 1.0]).median, 2.0);
        assert_eq!(Sample::of(&[7.0]).half_width, 0.0);
        assert_eq!(Sample::of(&[]), Sample::default());
    }
}
