//! Activations once more as tile registers take them, a token behind the other: see [`Lines`].

use super::contract::{Line, Lines, NR, SPAN, SPAN_LINES};
use super::threads::{Threads, lock};
use crate::simd::{Lanes, Level, Work};
use std::sync::{Mutex, OnceLock};

/// The lines of all panels, made when a product asks for them.
#[derive(Default)]
pub(super) struct LineStore {
    made: OnceLock<Made>,
    /// Memory of lines that do not count any more.
    spare: Mutex<Vec<Line>>,
}

struct Made {
    panels: usize,
    /// (spans, panels, [`SPAN_LINES`]); behind the end of a row, in the last span, nothing that counts.
    lines: Vec<Line>,
}

impl LineStore {
    /// There are other activations.
    pub fn clear(&mut self) {
        if let Some(made) = self.made.take() {
            self.spare = Mutex::new(made.lines);
        }
    }

    /// Make those of `panels` panels (panels, columns / 4, 16), unless they are there.
    pub fn make(&self, dwords: &[i32], panels: usize, threads: &Threads) {
        self.made.get_or_init(|| {
            let panel = dwords.len().checked_div(panels).unwrap_or(0);
            let spans = panel.div_ceil(SPAN / 4 * NR);
            let mut lines = std::mem::take(&mut *lock(&self.spare));
            lines.resize(spans * panels * SPAN_LINES, Line::ZERO);
            let of_spans: Vec<_> = lines
                .chunks_exact_mut((panels * SPAN_LINES).max(1))
                .map(Mutex::new)
                .collect();
            threads.run(spans, |span| {
                let lines = &mut *lock(&of_spans[span]);
                for (dwords, lines) in dwords.chunks_exact(panel).zip(lines.chunks_exact_mut(SPAN_LINES)) {
                    let dwords = dwords.chunks(SPAN / 4 * NR).nth(span).unwrap_or_default();
                    Level::widest().run(Transpose { dwords, lines });
                }
            });
            Made { panels, lines }
        });
    }

    /// Those of panel `panel` from column `column` on, the first of a span; none where they were not made.
    pub fn of_panel(&self, panel: usize, column: usize) -> Lines<'_> {
        self.made.get().map_or(Lines::default(), |made| Lines {
            lines: &made.lines[(column / SPAN * made.panels + panel) * SPAN_LINES..],
            panels: made.panels,
        })
    }
}

/// 16 tokens of some columns, dword by dword, to a line for each token and 64 columns.
struct Transpose<'a> {
    dwords: &'a [i32],
    lines: &'a mut [Line],
}

impl Work for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: impl Lanes) {
        let (dwords, lines) = (self.dwords.as_chunks::<NR>().0, self.lines.as_chunks_mut::<NR>().0);
        for (dwords, lines) in dwords.as_chunks::<16>().0.iter().zip(lines) {
            let rows = riffle(&riffle(&riffle(&riffle(dwords))));
            for (line, row) in lines.iter_mut().zip(rows) {
                line.0 = row;
            }
        }
    }
}

/// The numbers of rows 0 to 7 and of rows 8 to 15 in turns. What was at 16 * row + column is then at a place whose 8 bits
/// are rotated by one; after four times row and column have changed places. (Plain loops, which compilers make
/// permutations of; of a transposition they make scattered writes.)
#[inline(always)]
fn riffle(rows: &[[i32; 16]; 16]) -> [[i32; 16]; 16] {
    let mut riffled = [[0; 16]; 16];
    for i in 0..8 {
        for j in 0..8 {
            riffled[2 * i][2 * j] = rows[i][j];
            riffled[2 * i][2 * j + 1] = rows[i + 8][j];
            riffled[2 * i + 1][2 * j] = rows[i][j + 8];
            riffled[2 * i + 1][2 * j + 1] = rows[i + 8][j + 8];
        }
    }
    riffled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_the_tokens_of_their_panels() {
        let (panels, columns) = (3, 2 * SPAN + 64);
        let value = |panel: usize, dword: usize, token: usize| (panel * 10_000 + dword * 16 + token) as i32;
        let dwords: Vec<_> = (0..panels * columns / 4 * NR)
            .map(|i| value(i / (columns / 4 * NR), i / NR % (columns / 4), i % NR))
            .collect();
        for threads in [1, 2] {
            let mut store = LineStore::default();
            for _ in 0..2 {
                store.make(&dwords, panels, &Threads::new(threads));
                for panel in 0..panels {
                    for (span, columns) in [SPAN, SPAN, 64].into_iter().enumerate() {
                        for first in [0, span] {
                            let lines = store.of_panel(panel, first * SPAN).span(span - first);
                            for (i, line) in lines.iter().take(columns / 64 * NR).enumerate() {
                                let dword = |d: usize| value(panel, span * SPAN / 4 + i / NR * 16 + d, i % NR);
                                assert_eq!(line.0, std::array::from_fn(dword), "{panel} {span} {i}");
                            }
                        }
                    }
                }
                store.clear();
            }
        }
    }
}
