//! Small linear programmes.

/// Below this a number of the tableau is taken for 0. Rows are scaled so that their right side is 1.
const ROUNDING: f64 = 1e-9;

/// An optimum.
pub(super) struct Solution {
    /// What is reached.
    pub(super) value: f64,
    /// For each row, by how much the value grows with each unit of its right side.
    pub(super) prices: Vec<f64>,
}

/// Maximises the sum of as many variables, none of them negative, as there are columns, such that each row of coefficients (by column; none is
/// negative) comes to at most its right side, which is above 0. Nothing if there is no maximum.
///
/// The simplex method on a dense tableau, from the origin. Source: Bland, "New finite pivoting rules for the simplex method", 1977, by which
/// it ends.
pub(super) fn maximise(columns: usize, rows: &[(Vec<f64>, f64)]) -> Option<Solution> {
    let width = columns + rows.len();
    // Each row with its slack variable, and its right side at the end.
    let mut tableau: Vec<Vec<f64>> = Vec::with_capacity(rows.len());
    for (index, (row, right)) in rows.iter().enumerate() {
        let mut scaled: Vec<f64> = row.iter().map(|coefficient| coefficient / right).collect();
        scaled.resize(width + 1, 0.0);
        scaled[columns + index] = 1.0;
        scaled[width] = 1.0;
        tableau.push(scaled);
    }
    // What a unit of each variable would add, and at the end what is reached so far, negative.
    let mut gains = vec![0.0; width + 1];
    gains[..columns].fill(1.0);
    let mut basis: Vec<usize> = (columns..width).collect();
    while let Some(entering) = gains[..width].iter().position(|&gain| gain > ROUNDING) {
        let ratio = |row: &usize| tableau[*row][width] / tableau[*row][entering];
        let leaving = (0..rows.len())
            .filter(|&row| tableau[row][entering] > ROUNDING)
            .min_by(|one, other| ratio(one).total_cmp(&ratio(other)).then(basis[*one].cmp(&basis[*other])))?;
        basis[leaving] = entering;
        let by = tableau[leaving][entering];
        tableau[leaving].iter_mut().for_each(|number| *number /= by);
        let pivot = tableau[leaving].clone();
        let subtract = |row: &mut Vec<f64>| {
            let times = row[entering];
            row.iter_mut().zip(&pivot).for_each(|(number, pivot)| *number -= times * pivot);
        };
        tableau.iter_mut().enumerate().filter(|(row, _)| *row != leaving).for_each(|(_, row)| subtract(row));
        subtract(&mut gains);
    }
    let price = |(row, (_, right)): (usize, &(Vec<f64>, f64))| (-gains[columns + row]).max(0.0) / right;
    Some(Solution { value: -gains[width], prices: rows.iter().enumerate().map(price).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_binds_has_a_price() {
        // x + y <= 4, x <= 3, 2 y <= 3.
        let rows = [(vec![1.0, 1.0], 4.0), (vec![1.0, 0.0], 3.0), (vec![0.0, 2.0], 3.0)];
        let found = maximise(2, &rows).unwrap();
        assert_eq!((found.value, found.prices[0]), (4.0, 1.0));
        let found = maximise(2, &[(vec![1.0, 1.0], 5.0), rows[1].clone(), rows[2].clone()]).unwrap();
        assert_eq!((found.value, found.prices), (4.5, vec![0.0, 1.0, 0.5]));
        assert!(maximise(2, &rows[1..2]).is_none());
        assert_eq!(maximise(0, &[]).unwrap().value, 0.0);
    }
}
