use super::*;

#[test]
fn an_interleaved_row_is_found() {
    let rows = StoredRows {
        ty: BlockType::F32,
        bytes: &[],
        bias: None,
        shape: (12, 1),
        interleaved: Some(6),
    };
    // Dimensions 0, 3 of a head of 6 stand first, then 1, 4: transformers' pairs.
    let places: Vec<_> = (0..12).map(|row| rows.place(row)).collect();
    assert_eq!(places, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
}
