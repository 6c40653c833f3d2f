# One echo server, written five times. `make help` lists the targets.

CC      ?= cc
CFLAGS  ?= -O2 -g
WARNING := -Wall -Wextra -Wpedantic -Wshadow -Wconversion
PORT    ?= 8888
ARGS    ?= -v
QUIET   := $(if $(V),,@)
TESTS   := tests/run -q tests --processes 8
PYTHON  ?= python3

# What Python compiles of the tests is kept with the rest of what is built, for the next time.
export PYTHONPYCACHEPREFIX ?= $(CURDIR)/build/pycache
unexport PYTHONDONTWRITEBYTECODE

# make SAN=1 …: with AddressSanitizer and UndefinedBehaviorSanitizer, in a folder of its own.
ifdef SAN
BUILD    ?= build-san
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
export SAN
endif
BUILD   ?= build
export BUILD

DAYS   := day01 day02 day03 day04 day05
folder  = $(wildcard $(1)-*)

all: programs ## all: build everything
	@echo "everything is in $(BUILD)/; make help lists what you can do with it"

# ---- Programs. A server is built from all .c files in its folder, except those that stand alone.

ALONE := %/client.c %/bzero_pitfall.c %/two_servers.c %/herd.c

# $(1): the output file, $(2): the sources besides common/die.c
define program
programs: $(BUILD)/$(1)
$(BUILD)/$(1): $(2) $(wildcard common/die.[ch] $(dir $(firstword $(2)))*.h)
	@mkdir -p $$(@D)
	$(QUIET)$$(CC) -std=gnu11 -pthread $(WARNING) $$(CFLAGS) $(SANITIZE) -o $$@ $$(filter %.c,$$^) $$(LDFLAGS)
endef

# The same, if the sources are there: a step of the notes does not have all files yet.
there_is = $(if $(wildcard $(firstword $(2))),$(eval $(call program,$(1),$(2))))

$(foreach day,$(DAYS),$(call there_is,$(day)/server,$(filter-out $(ALONE),$(wildcard $(call folder,$(day))/*.c))))
$(call there_is,day01/client,day01-block-socket/client.c)
$(call there_is,day04/bzero_pitfall,day04-epoll-class/bzero_pitfall.c)
$(call there_is,day04/two_servers,$(addprefix day04-epoll-class/,two_servers.c server.c epoll.c))
$(call there_is,day05/herd,day05-herd/herd.c)

# ---- What make bench measures besides the days: other servers, and day 3 with buffers of other sizes

$(BUILD)/bench/%: tests/bench/%.c tests/bench/listener.h
	@mkdir -p $(@D)
	$(CC) -std=gnu11 $(WARNING) $(CFLAGS) -o $@ $< $(LDFLAGS) $(if $(filter lib%,$*),-l$(*:lib%=%))

$(BUILD)/bench/buffer-%k: day03-epoll-basic/server.c common/die.c common/die.h
	@mkdir -p $(@D)
	sed 's/BUFFER_SIZE = [0-9]* \* 1024/BUFFER_SIZE = $* * 1024/' $< | \
	    $(CC) -std=gnu11 $(WARNING) $(CFLAGS) -I $(<D) -o $@ -x c - common/die.c $(LDFLAGS)

# ---- What make kernels runs on other kernels, where there are no libraries

$(BUILD)/kernels/herd: day05-herd/herd.c common/die.c common/die.h
$(BUILD)/kernels/facts: tests/kernels/facts.c common/die.c common/die.h
$(BUILD)/kernels/%:
	@mkdir -p $(@D)
	$(QUIET)$(CC) -std=gnu11 -pthread -static $(WARNING) $(CFLAGS) -o $@ $(filter %.c,$^)

# ---- What a reader types. With STEP=N it applies to a day as it stands after a step of the notes, which is
# built in a tree of its own.

ifdef STEP
day  = $(lastword $(subst -, ,$@))
tree = $(BUILD)/steps/$(day)/$(STEP)

$(DAYS):
	@$(PYTHON) tests/book/steps.py $(day) $(STEP) $(tree)
	@$(MAKE) -s -C $(tree) STEP= BUILD=build programs
	@$(if $(filter $@,$(MAKECMDGOALS)),echo "step $(STEP) of $(day) is built. To run it: make run-$(day) STEP=$(STEP)")

$(DAYS:%=run-%): run-%: %
	@grep -q getopt $(tree)/$(day)*/*.c && args='$(ARGS)'; $(tree)/build/$(day)/server $$args $(PORT)

$(DAYS:%=test-%): test-%: %
	@BUILD=$(tree)/build $(TESTS) --step $(day)/$(STEP)

$(DAYS:%=diff-%):
	@$(PYTHON) tests/book/steps.py $(day) $$(($(STEP) - 1)) $(BUILD)/steps/$(day)/$$(($(STEP) - 1))
	@$(PYTHON) tests/book/steps.py $(day) $(STEP) $(tree)
	@cd $(BUILD)/steps/$(day) && \
	    diff -ruN --color=auto -x build -x Makefile $$(($(STEP) - 1)) $(STEP) || [ $$? = 1 ]
else

$(DAYS): %: $(BUILD)/%/server ## dayNN: build a day, as in make day03
	@echo "$@ is built. To run it: make run-$@. To test it: make test-$@. What is new: make diff-$@"

day04: $(BUILD)/day04/bzero_pitfall $(BUILD)/day04/two_servers
day05: $(BUILD)/day05/herd

$(DAYS:%=run-%): run-%: $(BUILD)/%/server ## run-dayNN [PORT=8888] [ARGS=-v]: run a day in the foreground; Ctrl-C ends it
	@$< $(ARGS) $(PORT)

client: $(BUILD)/day01/client ## client: build the client, the same for all days
	@echo "the client is built. To talk to a server: echo hi | $< [PORT [HOST]]"

# diff exits with 1 when the files differ, which is the point, and with 2 when it failed.
$(DAYS:%=diff-%): diff-%: ## diff-dayNN: what is new in a day
	@day=$(call folder,$*); before=$$(ls -d day0*-* | grep -B1 -x $$day | head -n 1); \
	[ $$before != $$day ] || echo "$$day is the first day, so there is nothing to compare it with"; \
	for file in server.c $$(cd $$day && ls | grep '\.[ch]$$' | grep -vxE '(server|client|bzero_pitfall)\.c'); do \
	    diff -uN --color=auto $$before/$$file $$day/$$file || [ $$? = 1 ] || exit 2; done

$(DAYS:%=test-%): test-%: programs ## test-dayNN: run the tests of a day
	@$(TESTS) -m "not book" -k $*
endif

steps: ## steps: list the steps of each day; dayNN, run-dayNN, test-dayNN and diff-dayNN take STEP=N
	@$(PYTHON) tests/book/steps.py

herd: $(BUILD)/day05/herd ## herd [WORKERS=10] [CONNECTIONS=100] [DELAY=0] [WAY=epoll]: count the workers that the kernel wakes
	@$(PYTHON) tests/herd.py $(if $(WORKERS),--workers $(WORKERS)) $(if $(CONNECTIONS),--connections $(CONNECTIONS)) \
	    $(if $(DELAY),--delay $(DELAY)) $(if $(WAY),--way $(WAY))

switches: $(BUILD)/bench/forking $(BUILD)/day03/server ## switches: count the context switches of a process per client, and of one epoll loop
	@$(PYTHON) tests/switches.py

bench: programs ## bench [QUICK=1]: compare our servers with libev, libuv, libevent and io_uring (five minutes)
	@$(PYTHON) tests/bench.py $(if $(QUICK),--quick)

scale: programs ## scale [QUICK=1]: measure what idle clients cost, with select and with epoll (two minutes)
	@$(PYTHON) tests/scale.py $(if $(QUICK),--quick)

modes: programs ## modes [QUICK=1]: compare day 5's modes, also when a worker hangs or dies (four minutes)
	@$(PYTHON) tests/modes.py $(if $(QUICK),--quick)

kernels: ## kernels [QUICK=1]: run the laboratory on the kernels of Debian 11 to sid, in an emulator (three minutes)
	@$(PYTHON) tests/kernels.py $(if $(QUICK),--quick)

balance: $(BUILD)/day05/server ## balance [QUICK=1]: run day 5 on three machines behind HAProxy, as root (two minutes)
	@$(PYTHON) tests/balance.py $(if $(QUICK),--quick)

figures: ## figures [FROM=build/measured]: draw the results of herd, switches, scale, bench, modes and balance
	@$(PYTHON) tests/figures.py $(FROM)

test: programs ## test: run all tests, except those of the book
	@$(TESTS) -m "not book"

test-book: programs ## test-book: type every session of the notes, run each step's tests on it and on the one before, test the exercises and the site
	@$(TESTS) -m book

book: ## book: make a site of the notes, with the code of each step next to them, in build/book
	@$(PYTHON) tests/book/page.py $(BUILD)/book

check: ## check SERVER='./mine {port}' [DAY=1] [TEST=bytes] [TRACE=1]: say which promises your own server keeps, in any language
	@[ -n "$(SERVER)" ] || { echo "check: which one? make check SERVER='./mine {port}'"; exit 2; }
	@PATIENCE=$${PATIENCE:-5} tests/run $(if $(TRACE),-q,-p no:terminal --card) tests/test_contract.py \
	    --server '$(SERVER)' $(if $(DAY),--day $(DAY)) $(if $(TEST),-k '$(TEST)')

exercise-%: ## exercise-2.1: say what to do, make mine/2.1/ to do it in, build what is there, say what is missing
	@COMPILE='$(CC) -std=gnu11 -pthread $(WARNING) $(CFLAGS) $(SANITIZE)' LDFLAGS='$(LDFLAGS)' $(PYTHON) tests/exercises.py $*

exercises: ## exercises: list them, three for each day
	@$(PYTHON) tests/exercises.py

pitfall-%: programs ## pitfall-NAME [TRACE=1]: put one bug into a server; see its symptom, cause and cure, and the test that catches it
	@TRACE=$(TRACE) $(PYTHON) tests/pitfall.py $*

pitfalls: ## pitfalls: list these bugs
	@$(PYTHON) tests/pitfall.py

SOURCES := $(wildcard common/*.[ch] day0*/*.[ch] tests/bench/*.[ch] tests/kernels/*.c)

lint: ## lint: check the format of the C code, and look for mistakes in it
	@for tool in clang-format cppcheck; do \
	    command -v $$tool >/dev/null || { echo "lint: $$tool is not installed"; exit 1; }; done
	clang-format --dry-run -Werror $(SOURCES)
	cppcheck -q --error-exitcode=1 --std=c11 --enable=warning,style,performance,portability \
	    --inline-suppr $(filter %.c,$(SOURCES))

clean: ## clean: remove what was built
	rm -rf build build-*

help: ## help: show this
	@sed -n 's/^[^#]*:.* ## \([^:]*\): /\1:/p' Makefile | \
	    awk -F : '{ printf "  make %s\n        %s\n", $$1, $$2 }'
	@echo "  with V=1 make shows how it calls the compiler"
	@echo "  with SAN=1 any of these uses AddressSanitizer, with CC=clang another compiler"

.PHONY: all programs client steps test-book book herd switches bench scale modes kernels balance figures test check exercises pitfalls lint clean help $(DAYS) $(foreach what,run diff test,$(DAYS:%=$(what)-%))
