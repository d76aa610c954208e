# hubspot_sync: build, install and test with PGXS.
#
#   make                      build against the server of pg_config
#   make PG_CONFIG=/path/...  build against another one
#   make WERROR=1             warnings are errors, as in scripts/lint
#   make INJECTION=1          with points at which a test can crash it; never
#                             to be installed for use
#   make installcheck         regression, isolation and TAP tests (not as root)
#   make format               bring the C files into shape
#   make dist                 the archive for PGXN

EXTENSION = hubspot_sync
MODULE_big = hubspot_sync

# The control file is the only place where the version is written.
EXTVERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" \
	$(EXTENSION).control)

OBJS = \
	src/hubspot_sync.o \
	src/guc.o \
	src/http.o \
	src/json.o \
	src/ratelimit.o \
	src/secret.o \
	src/api.o \
	src/catalog.o \
	src/filter.o \
	src/mapping.o \
	src/sources.o \
	src/progress.o \
	src/change.o \
	src/outbox.o \
	src/preview.o \
	src/target.o \
	src/absence.o \
	src/history.o \
	src/store.o \
	src/reconcile.o \
	src/descent.o \
	src/pull.o \
	src/properties.o \
	src/deliver.o \
	src/push.o \
	src/subxact.o \
	src/run.o \
	src/request.o \
	src/wait.o \
	src/worker.o \
	src/schedule.o \
	src/launcher.o \
	src/config.o \
	src/sqlfuncs.o

DATA = $(wildcard sql/$(EXTENSION)--*.sql)

# Regression tests run in this order, whatever is not named comes after it.
regress_first = install
regress_all := $(patsubst test/sql/%.sql,%,$(sort $(wildcard test/sql/*.sql)))
REGRESS := $(strip $(filter $(regress_first),$(regress_all)) \
	$(filter-out $(regress_first),$(regress_all)))
REGRESS_OPTS = --inputdir=test --encoding=UTF8

ISOLATION := $(patsubst test/specs/%.spec,%,$(sort $(wildcard test/specs/*.spec)))
ISOLATION_OPTS = --inputdir=test --outputdir=.

TAP_TESTS = 1
PROVE_TESTS = test/t/*.pl

EXTRA_CLEAN = log results regression.diffs regression.out \
	$(EXTENSION)-*.zip

PG_CONFIG = pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
server_headers := $(shell $(PG_CONFIG) --includedir-server)

PKG_CONFIG ?= pkg-config
SHLIB_LINK = \
	$(shell $(PKG_CONFIG) --libs libcurl 2>/dev/null || \
		curl-config --libs 2>/dev/null || echo -lcurl) \
	$(shell $(PKG_CONFIG) --libs json-c 2>/dev/null || echo -ljson-c)

# Warnings are for our files: a folder named by -isystem as well as by -I is
# a system folder for gcc and for clang.
library_flags := $(shell $(PKG_CONFIG) --cflags libcurl json-c 2>/dev/null)
PG_CPPFLAGS = -isystem $(server_headers) \
	$(patsubst -I%,-isystem %,$(library_flags))
PG_CFLAGS = -Wall -Wextra -Wshadow -Wno-unused-parameter $(compiler_flags)
ifdef WERROR
PG_CFLAGS += -Werror
endif
ifdef INJECTION
OBJS += src/injection.o
PG_CPPFLAGS += -DHS_INJECTION
endif

# clang is handed the server's flags, some of which only gcc knows.
compiler_flags = $(if $(findstring clang,$(CC)),-Wno-unknown-warning-option \
	-Wno-ignored-optimization-argument -Wno-unused-command-line-argument)

# A server built with LLVM asks for bitcode; do without where the tools that
# make it are not there.
makefile_global := $(dir $(PGXS))../Makefile.global
global_value = $(shell sed -n 's/^$(1)[[:space:]]*=[[:space:]]*//p' \
	'$(makefile_global)' 2>/dev/null | head -n 1)
ifeq ($(call global_value,with_llvm),yes)
CLANG ?= $(call global_value,CLANG)
llvm_lto := $(call global_value,LLVM_BINPATH)/llvm-lto
ifeq ($(shell command -v $(CLANG) && command -v $(llvm_lto)),)
override with_llvm := no
endif
endif

include $(PGXS)

# Every header is small and rarely changed: all objects depend on all of them.
c_headers := $(wildcard src/*.h)
$(OBJS) $(OBJS:.o=.bc): $(c_headers)

.PHONY: format check-format dist

format:
	scripts/format

check-format:
	scripts/format --check

# A patch release without new SQL keeps default_version, so the archive is
# named by META.json, which has to agree with it in the first two numbers.
DISTVERSION := $(shell sed -n '0,/"version"/s/.*"version": *"\(.*\)".*/\1/p' \
	META.json)

dist:
	@case '$(DISTVERSION)' in '$(EXTVERSION)'|'$(EXTVERSION)'.*) ;; \
		*) echo 'META.json and $(EXTENSION).control disagree on the version' >&2; exit 1;; esac
	git archive --format=zip --prefix=$(EXTENSION)-$(DISTVERSION)/ \
		--output=$(EXTENSION)-$(DISTVERSION).zip HEAD
