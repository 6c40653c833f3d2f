# One echo server, five times. "make help" says what can be done.

CC      ?= cc
CFLAGS  ?= -O2 -g
WARNING := -Wall -Wextra -Wpedantic -Wshadow -Wconversion
PORT    ?= 8888

# make SAN=1 …: with AddressSanitizer and UndefinedBehaviorSanitizer, in a folder of its own.
ifdef SAN
BUILD   ?= build-san
SANFLAG := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
endif
BUILD   ?= build

DAYS    := day01 day02 day03 day04
folder   = $(wildcard $(1)-*)
compile  = $(CC) -std=gnu11 -pthread $(WARNING) $(CFLAGS) $(SANFLAG) -o $@ $(filter %.c,$^) $(LDFLAGS)

.PHONY: all help clean client test lint check $(DAYS) $(DAYS:%=run-%) $(DAYS:%=test-%)

all: $(DAYS) client ## build everything (what a bare "make" does)

# ---- Programs: a server is made of all .c files of its folder, but for those with a main of their own

alone := %/client.c %/bzero_pitfall.c

define program # $(1): day, $(2): program, $(3): its sources in the folder of the day
$(BUILD)/$(1)/$(2): $(3) common/die.c $(wildcard $(call folder,$(1))/*.h) common/die.h
	@mkdir -p $$(@D)
	$$(compile)
endef

sources = $(filter-out $(alone),$(wildcard $(call folder,$(1))/*.c))
$(foreach day,$(DAYS),$(eval $(call program,$(day),server,$(call sources,$(day)))))
$(eval $(call program,day01,client,day01-block-socket/client.c))


$(DAYS): %: $(BUILD)/%/server ## build a day and say how to run it: make day03
	@echo "$@ is built: make run-$@ runs it, make test-$@ tests it, make diff-$@ shows what is new"

client: $(BUILD)/day01/client ## build the client: build/day01/client [PORT [ADDRESS]]

$(DAYS:%=run-%): run-%: $(BUILD)/%/server ## run a day in the foreground: make run-day03 [PORT=8888] [ARGS=-v]
	@$< $(ARGS) $(PORT)
