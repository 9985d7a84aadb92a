# What there is to do here, each in one word. Root and a Rust toolchain are needed; the rest is installed by the targets
# that need it. PREFIX says where `make install` goes, CRIU names the criu to compare with (otherwise Debian forky's is
# brought in).

PREFIX ?= /usr/local
CRIU ?= $(CURDIR)/scripts/peer-criu
CARGO ?= cargo
peer = $(if $(filter $(CURDIR)/scripts/peer-criu,$(CRIU)),scripts/peer.sh)

build:
	$(CARGO) build --release -p cryonaut-cli

# Everything; quiet until something fails.
test:
	@scripts/test-deps.sh
	@scripts/newer-runtimes.sh
	@scripts/docker.sh
	@scripts/test.sh

# Every workload dumped by us and restored by CRIU, and the other way round.
test-peer:
	$(peer)
	CRIU=$(CRIU) $(CARGO) test -p cryonaut-cli --test peer

demo: build
	@scripts/demo.sh target/release/cryonaut

# The table of speeds, ours and the peer's measured in turn.
bench: build
	@$(peer)
	@CRIU=$(CRIU) scripts/bench target/release/cryonaut

# The tests that get better with time: more random cases, a thousand kills, a server that
# is away for a minute, and every workload again and again.
soak:
	@scripts/test-deps.sh
	@scripts/newer-runtimes.sh
	@scripts/docker.sh
	PROPTEST_CASES=5000 scripts/test.sh
	CRYONAUT_KILLS=$(or $(KILLS),1000) $(CARGO) test -q -p cryonaut-cli --test kills
	CRYONAUT_SCHEDULES=1000 $(CARGO) test -q -p cryonaut-cli --test survives -- schedules
	CRYONAUT_KILLS=$(or $(KILLS),1000) $(CARGO) test -q -p cryonaut-cli --test lazy
	CRYONAUT_CONTAINER_KILLS=$(or $(KILLS),50) $(CARGO) test -q -p cryonaut-cli --test containers -- kills
	CRYONAUT_AWAY=60 $(CARGO) test -q -p cryonaut-cli --test programs -- veth
	for round in $$(seq $(or $(ROUNDS),20)); do $(CARGO) test -q -p cryonaut-cli --test survives || exit 1; done

# Throws made-up and damaged files at the image reader until told to stop. Needs cargo-fuzz and a nightly toolchain.
fuzz:
	@command -v cargo-fuzz >/dev/null || { echo "cargo-fuzz is missing: cargo install cargo-fuzz" >&2; exit 1; }
	cd fuzz && $(CARGO) +nightly fuzz run --fuzz-dir . $(or $(TARGET),image)

# One program, and the name by which container managers find it (`cryonaut doctor` tells whether they do). A criu that
# a package has put there stays.
install: build
	install -D -m 755 target/release/cryonaut $(DESTDIR)$(PREFIX)/sbin/cryonaut
	@scripts/link-criu.sh $(DESTDIR)$(PREFIX)/sbin

.PHONY: build test test-peer demo bench soak fuzz install
