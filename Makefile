# `make test-peer`: every workload dumped by us and restored by CRIU, and the other way round. CRIU names another criu than
# Debian forky's, which is brought in otherwise.

CRIU ?= $(CURDIR)/scripts/peer-criu

test-peer:
ifeq ($(CRIU),$(CURDIR)/scripts/peer-criu)
	scripts/peer.sh
endif
	CRIU=$(CRIU) cargo test -p cryonaut-cli --test peer

.PHONY: test-peer
