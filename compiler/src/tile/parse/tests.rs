use super::parse;
use crate::tile::ir::*;
use crate::tile::print::print;
use crate::tile::verify::verify;

/// One of every declaration and op.
const EVERYTHING: &str = r#"kernel "m::everything" {
  docs "says \"what\"\nit is"
  generic "T" = dtype bf16
  generic "N" = int -3
  generic "B" = bool true
  dim d0 "M" 0 to 1048576 step 8
  dim d1 "pos" -4 to 9 step 1 scalar p3
  param p0 "a" in [dim "M", add(mul(dim "pos", 64), 1)] bf16 align 16
  param p1 "o" inout [dim "M", 64] f32 align 4 strided
  param p2 "eps" scalar f32
  param p3 "pos" index
  param p4 "f" flags [4] i32 align 4
  param p5 "idx" in [dim "M"] i32 align 4
  require gt(scalar "eps", float 0.0) "eps > 0.0" message "eps is positive"
  require select(true, false, not(false)) "odd"
  grid [cdiv(dim "M", 64), 2] persistent warps 8
  contract deterministic
  contract batch_invariant d0
  deny "in_kernel_checks"
  budget shared 1024
  budget registers 200
  tile t0 "acc" reg [64, 64] f32
  tile t1 "x" shared [64, 64] bf16
  tile t2 "y" slot [64, 64] bf16
  tile t3 "sum" reg [64] f32
  tile t4 "v" reg [64, 4] f32
  tile t5 "i" reg [64, 4] i32
  tile t6 "s" reg [] f32
  tile t7 "w" reg [64, 64] f32
  channel c0 "key" [64, 64] bf16 parts 2 slots 3
  channel c1 "qry" [64, 64] bf16 parts 1 ring c0
  body {
    %0 = const index 0
    role "load" copies 1 (%1 "copy_id") {
      items (%2 "i", %3 "j") {
        %4 = dim d0
        %5 = scalar p2
        put c0 <- p0[%2 :+ 64, %0 :+ 64] oob zero
        put c1 <- p0[gather p5[%0 :+ 64] :+ 64, %0 :+ 64] oob skip
        signal p4[%0]
      }
    }
    role "use" copies 2 (%6) {
      items (%7, %8) {
        get c0 as t2
        copy t1[%0 :+ 64, %0 :+ 64] <- t2[%0 :+ 64, %0 :+ 64] oob never
        dot t0[%0 :+ 64, %0 :+ 64] += t1[%0 :+ 64, %0 :+ 64], t2[%0 :+ 64, %0 :+ 64] transposed
        release t2 part 1
        release t2
        reduce t3 = sum t0 axis 1 ascending
        reduce t3 = max t0 axis 0 tree 8
        scan t7 = sum t0 axis 1
        topk t4, t5 = largest t0
        topk t4, t5 = smallest t0
        %9 = load t6[]
        %10 = const bool true
        map [64, 64] (%11 "r", %12 "c") {
          %13 "x" = load t1[%11, %12]
          %14 = cast %13 to f32
          %15 = const f32 -0.0
          %16 = const f32 1e-6
          %17 = const f32 inf
          %18 = fma %14, %15, %16
          %19 = exp2 %18
          %20 = lt %19, %17
          %21 = select %20, %19, %9
          %22 = bitcast %21 to u32
          %23 = const u32 65535
          %24 = xor %22, %23
          %25 = bitcast %24 to f32
          store t7[%11, %12] = %25
          %26 = load p1[%11, %12] if %20
          %27 = is_nan %26
          store p1[%11, %12] = %26 if %27
          scatter p1[%11, %12] = %26
          atomic sum p1[%11, %12] = %26 if %27
          %28 = rem %11, %12
          %29 = cast %28 to f32
        }
        %30 = const index 4
        for %0 to %30 (%31 "k") {
          if %10 {
            assert %10 "fine"
          } else {
            assume %10
          }
        }
        for %0 to %30 pipeline stages 3 (%32) {
        }
        for %0 to %30 pipeline (%33) {
        }
        wait p4[%0] >= %30
        %34 = block 1
        print "here", %34, t3
      }
    }
  }
}
"#;

#[test]
fn text_round_trips() {
    let kernel = parse(EVERYTHING).expect("the text is right");
    verify(&kernel).expect("the kernel is right");
    let text = print(&kernel);
    assert_eq!(text, EVERYTHING);
    assert_eq!(print(&parse(&text).expect("it was printed")), text);
}

#[test]
fn errors_name_the_line() {
    let broken = EVERYTHING.replace("store t7[%11", "store t7[%99");
    let error = parse(&broken).unwrap_err();
    assert_eq!(
        error.to_string(),
        "line 71: `%99` is no value defined above"
    );
    assert!(parse("kernel \"x").is_err());
    assert!(parse("kernel \"x\" {").is_err());
    assert!(parse("kernel \"x\" { body { %0 = load p3[] } }").is_err());
}

/// Each edit of a valid text breaks one rule, and the verifier says which op.
#[test]
fn verifier_rejects() {
    for (from, to, message) in [
        ("lt %19, %17", "lt %19, %12", "cannot compare"),
        (
            "store t7[%11, %12] = %25",
            "store t7[%11] = %25",
            "the tile has 2 axes",
        ),
        (
            "copy t1[%0 :+ 64, %0 :+ 64] <- t2",
            "copy t1[%0 :+ 32, %0 :+ 64] <- t2",
            "copies [64, 64] to [32, 64]",
        ),
        (
            "transposed\n",
            "\n        copy t2[%0 :+ 64, %0 :+ 64] <- t1[%0 :+ 64, %0 :+ 64] oob never\n",
            "a slot is read only",
        ),
        ("axis 0 tree 8", "axis 0 tree 6", "power of two"),
        (
            "reduce t3 = max t0 axis 0",
            "reduce t3 = and t0 axis 0",
            "cannot fold",
        ),
        (
            "topk t4, t5 = largest t0",
            "topk t4, t4 = largest t0",
            "indices are i32",
        ),
        ("map [64, 64]", "map [64]", "2 arguments instead of 1"),
        (
            "          %28 = rem %11, %12",
            "          get c0 as t2",
            "only scalar ops stand in a map",
        ),
        ("if %10 {", "if %30 {", "a condition is a bool"),
        (
            "print \"here\", %34, t3",
            "print \"here\", %34, t3\n get c0 as t1",
            "slot",
        ),
        (
            "grid [cdiv(dim \"M\", 64), 2] persistent",
            "grid [cdiv(dim \"M\", 64), 2]",
            "persistent",
        ),
        ("wait p4[%0]", "wait p5[%0]", "flags"),
        (
            "scatter p1[%11, %12] = %26",
            "scatter p1[%11, %12] = %13",
            "another type",
        ),
        (
            "%29 = cast %28 to f32",
            "%29 = bitcast %28 to f32",
            "bitcast",
        ),
        ("const f32 1e-6", "const bf16 1e-6", "not exact"),
        (
            "body {",
            "body {\n role \"r\" copies 1 (%50) { get c0 as t2 }",
            "another role",
        ),
    ] {
        assert!(EVERYTHING.contains(from), "{from}");
        let text = EVERYTHING
            .replacen(from, to, 1)
            .replace("%29 = cast %28 to f32\n        }\n        %30", "}\n %30");
        let kernel = parse(&text).unwrap_or_else(|e| panic!("{to}: {e}"));
        let found = verify(&kernel).expect_err(to);
        assert!(
            found.iter().any(|v| v.message.contains(message)),
            "{to}: {found:?}"
        );
    }
}

#[test]
fn verifier_sees_values_out_of_scope() {
    let mut kernel = parse(EVERYTHING).expect("the text is right");
    // The last op of the first role's item loop now reads a value of the map in the second role.
    let inner = kernel
        .values
        .iter()
        .position(|v| v.name.as_deref() == Some("x"))
        .expect("the text has one");
    let signal = kernel
        .live_ops()
        .into_iter()
        .find(|&o| matches!(kernel.op(o).kind, OpKind::Signal { .. }))
        .expect("the text has one");
    kernel.ops[signal.index()].kind = OpKind::Signal {
        param: ParamId(4),
        index: vec![ValueId(inner as u32)],
    };
    let found = verify(&kernel).unwrap_err();
    assert!(
        found[0].message.contains("used where it is not defined"),
        "{found:?}"
    );
}
