//! Rows taken and put in order, and how far two values are apart.

/// Every sequence's tokens at these positions, of `batch` sequences of `length` tokens.
pub(super) fn tokens_at(positions: &[usize], batch: usize, length: usize) -> Vec<usize> {
    (0..batch)
        .flat_map(|b| positions.iter().map(move |&p| b * length + p))
        .collect()
}

/// Positions of the tokens that close a block.
pub(super) fn closing(ratio: usize, length: usize) -> Vec<usize> {
    (0..length)
        .filter(|p| (p + 1).is_multiple_of(ratio))
        .collect()
}

/// Some tokens' rows of a value of `all` tokens.
pub(super) fn taken(values: &[f64], tokens: &[usize], all: usize) -> Vec<f64> {
    let width = values.len() / all.max(1);
    let rows = tokens
        .iter()
        .map(|&token| &values[token * width..][..width]);
    rows.flatten().copied().collect()
}

/// What steps of `[B, 1 or P, …]` make together: each sequence's values one after another.
pub(super) fn by_sequence(steps: &[Vec<f64>], batch: usize) -> Vec<f64> {
    (0..batch)
        .flat_map(|b| {
            steps.iter().flat_map(move |step| {
                let width = step.len() / batch;
                step[b * width..][..width].iter().copied()
            })
        })
        .collect()
}

pub(super) fn differing_bits(a: &[f64], b: &[f64]) -> usize {
    let pairs = a.iter().zip(b);
    pairs.filter(|(a, b)| a.to_bits() != b.to_bits()).count() + a.len().abs_diff(b.len())
}

/// Values by chosen expert in ascending order, in the order of `picks`.
pub(super) fn reordered(values: &[f64], picks: &[f64], choices: usize) -> Vec<f64> {
    let width = values.len() / picks.len().max(1);
    let tokens = picks.chunks(choices).zip(values.chunks(choices * width));
    tokens
        .flat_map(|(picks, values)| {
            picks.iter().flat_map(move |pick| {
                let place = picks.iter().filter(|other| *other < pick).count();
                values[place * width..][..width].iter().copied()
            })
        })
        .collect()
}

/// The other way round: what stands in the order of `picks`, by their numbers.
pub(super) fn by_number(values: &[f64], picks: &[f64], choices: usize) -> Vec<f64> {
    let width = values.len() / picks.len().max(1);
    let mut ordered = vec![0.0; values.len()];
    for (token, picks) in picks.chunks(choices.max(1)).enumerate() {
        for (from, pick) in picks.iter().enumerate() {
            let to = picks.iter().filter(|other| *other < pick).count();
            let at = |place: usize| (token * choices + place) * width;
            ordered[at(to)..][..width].copy_from_slice(&values[at(from)..][..width]);
        }
    }
    ordered
}

/// Tokens whose numbers (-1: none) are not the same, in whatever order.
pub(super) fn differing_sets(expected: &[f64], found: &[f64], tokens: usize) -> usize {
    let sets = |values: &[f64]| -> Vec<Vec<f64>> {
        let width = (values.len() / tokens.max(1)).max(1);
        values.chunks(width).map(crate::verify::as_set).collect()
    };
    let (expected, found) = (sets(expected), sets(found));
    let differing = expected.iter().zip(&found).filter(|(e, f)| e != f).count();
    differing + expected.len().abs_diff(found.len())
}

/// Root mean square of the differences over that of the expected values; NaN if any difference is.
pub(super) fn relative_error(expected: &[f64], found: &[f64]) -> f64 {
    let (mut error, mut size) = (0.0, 0.0);
    for (e, f) in expected.iter().zip(found) {
        // Equal infinities differ by nothing.
        if e != f {
            error += (e - f) * (e - f);
        }
        if e.is_finite() {
            size += e * e;
        }
    }
    if error == 0.0 {
        0.0
    } else {
        (error / size).sqrt()
    }
}

/// Place of the largest value.
pub(super) fn largest(values: &[f64]) -> Option<usize> {
    let places = values.iter().enumerate();
    places
        .max_by(|a, b| a.1.total_cmp(b.1))
        .map(|(place, _)| place)
}
