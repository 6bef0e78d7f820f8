//! What must not compile does not, and the compiler points at the line that is wrong.

#[test]
fn misuse_of_a_scope_does_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
