# `make test` and `make run` are the two that matter; each works on a fresh Debian 12 machine with Rust (root or sudo).

CARGO ?= cargo

.PHONY: help setup run test soak fmt lint

help:
	@echo "make run    set up what is missing, build, show what works here"
	@echo "make test   set up what is missing, check formatting and lints, run every test"
	@echo "make soak   the tests again with many more generated cases"
	@echo "make setup, make fmt, make lint"

setup:
	@.ci/setup

# The main job: kernels from text to native code (when `tessera` is built), a small V4 model checked against its expected values, tokens,
# and at the end a table of what ran: kernels, their instruction set, tokens per second.
run: setup
	$(CARGO) build --release --workspace
	target/release/tlc doctor
	target/release/v4 verify tests/golden/g1_mixed_tiny_mtp
	target/release/v4 generate --model tests/golden/g1_mixed_tiny_mtp --ids 11,3,29,7 --tokens 32
	target/release/v4 bench --model tests/golden/g1_mixed_tiny_mtp --prompt 64 --decode 32 --kernels

# Documentation tests first: the last lines are then those of a run that held tests.
test: setup lint
	$(CARGO) test --release --workspace --doc
	$(CARGO) test --release --workspace --lib --bins --tests

soak: setup
	TESSERA_SOAK_FACTOR=20 PROPTEST_CASES=5000 $(CARGO) test --release --workspace --lib --bins --tests

fmt:
	$(CARGO) fmt --all

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
