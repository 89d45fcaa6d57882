//! Activations as tile registers take them, a token behind the other: see [`Lines`].

use super::contract::{Line, Lines, NR, SPAN, SPAN_LINES};
use std::ops::Range;

/// Columns of a line.
pub(super) const LINE: usize = 64;

/// The lines of all panels.
#[derive(Default)]
pub(super) struct LineStore {
    /// 0 where there are none.
    panels: usize,
    /// (spans, panels, [`SPAN_LINES`]); behind the end of a row, in the last span, nothing that counts.
    lines: Vec<Line>,
    /// (panels, columns / group, 16)
    scales: Vec<f32>,
    /// Scales of a panel.
    scales_of_panel: usize,
}

/// A panel that is being filled.
pub(super) struct PanelLines<'a> {
    /// Those of each span.
    lines: Vec<&'a mut [Line]>,
    /// (columns / group, 16)
    scales: &'a mut [f32],
}

impl LineStore {
    /// There are other activations, without lines.
    pub fn clear(&mut self) {
        self.panels = 0;
    }

    /// Whether the activations have lines.
    pub fn are_there(&self) -> bool {
        self.panels > 0
    }

    /// Those of `panels` panels of so many columns, one panel after the other, to be filled.
    pub fn make(&mut self, panels: usize, columns: usize, group: usize) -> Vec<PanelLines<'_>> {
        (self.panels, self.scales_of_panel) = (panels, columns / group * NR);
        self.scales.resize(panels * self.scales_of_panel, 0.0);
        self.lines
            .resize(columns.div_ceil(SPAN) * panels * SPAN_LINES, Line::ZERO);
        let scales = self.scales.chunks_exact_mut(self.scales_of_panel);
        let mut of_panels: Vec<_> = scales.map(|scales| PanelLines { lines: vec![], scales }).collect();
        for (i, lines) in self.lines.chunks_exact_mut(SPAN_LINES).enumerate() {
            of_panels[i % panels].lines.push(lines);
        }
        of_panels
    }

    /// Scales and lines of panel `panel` in some columns, of which the first begins a span.
    pub fn of_panel(&self, panel: usize, columns: Range<usize>, group: usize) -> (&[f32], Lines<'_>) {
        let scales = &self.scales[panel * self.scales_of_panel..];
        let lines = Lines {
            lines: &self.lines[(columns.start / SPAN * self.panels + panel) * SPAN_LINES..],
            panels: self.panels,
        };
        (&scales[columns.start / group * NR..columns.end / group * NR], lines)
    }

    /// Copy the codes of a token, four in a number, and its scales.
    pub fn row(&self, panel: usize, token: usize, codes: &mut [i32], scales: &mut [f32]) {
        let of_panel = self.lines.chunks_exact(SPAN_LINES).skip(panel).step_by(self.panels);
        for (lines, codes) in of_panel.zip(codes.chunks_mut(SPAN / 4)) {
            for (line, codes) in lines[token..].iter().step_by(NR).zip(codes.as_chunks_mut().0) {
                *codes = line.0;
            }
        }
        let of_panel = self.scales[panel * self.scales_of_panel..].as_chunks::<NR>().0;
        for (scale, of_tokens) in scales.iter_mut().zip(of_panel) {
            *scale = of_tokens[token];
        }
    }
}

impl PanelLines<'_> {
    /// Put the codes of a token there, four in a number, and its scales.
    pub fn put(&mut self, token: usize, codes: &[i32], scales: &[f32]) {
        for (lines, codes) in self.lines.iter_mut().zip(codes.chunks(SPAN / 4)) {
            for (line, codes) in lines[token..].iter_mut().step_by(NR).zip(codes.as_chunks().0) {
                line.0 = *codes;
            }
        }
        for (of_tokens, scale) in self.scales.as_chunks_mut::<NR>().0.iter_mut().zip(scales) {
            of_tokens[token] = *scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_the_tokens_of_their_panels() {
        let (panels, columns) = (3, 2 * SPAN + 64);
        let columns_of_all = columns;
        let value = |panel: usize, dword: usize, token: usize| (panel * 10_000 + dword * 16 + token) as i32;
        let scales = |panel: usize, token: usize| -> Vec<f32> {
            let groups = 0..columns / 64;
            groups.map(|group| (panel * 1000 + group * NR + token) as f32).collect()
        };
        let mut store = LineStore::default();
        for (panel, lines) in store.make(panels, columns, 64).iter_mut().enumerate() {
            for token in 0..NR {
                let codes: Vec<_> = (0..columns / 4).map(|dword| value(panel, dword, token)).collect();
                lines.put(token, &codes, &scales(panel, token));
            }
        }
        for panel in 0..panels {
            for token in 0..NR {
                let (mut codes, mut found) = (vec![0; columns / 4], vec![0.0; columns / 64]);
                store.row(panel, token, &mut codes, &mut found);
                assert!((0..columns / 4).all(|dword| codes[dword] == value(panel, dword, token)));
                assert_eq!(found, scales(panel, token));
            }
            for (span, columns) in [SPAN, SPAN, 64].into_iter().enumerate() {
                for first in [0, span] {
                    let (scales, lines) = store.of_panel(panel, first * SPAN..columns_of_all, 64);
                    let number = panel * 1000 + first * SPAN / 64 * NR;
                    assert_eq!(scales.len(), (columns_of_all - first * SPAN) / 64 * NR);
                    assert!(
                        scales
                            .iter()
                            .enumerate()
                            .all(|(i, &scale)| scale == (number + i) as f32)
                    );
                    let spans = lines.span(span - first, panels - panel);
                    for (next, lines) in spans.iter().enumerate() {
                        for (i, line) in lines.iter().take(columns / LINE * NR).enumerate() {
                            let dword = |d: usize| value(panel + next, span * SPAN / 4 + i / NR * 16 + d, i % NR);
                            assert_eq!(line.0, std::array::from_fn(dword), "{panel} {span} {i}");
                        }
                    }
                }
            }
        }
        store.clear();
        assert!(!store.are_there());
    }
}
