PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow wheel check devices mutants bench bench-trained docs clean

# Installed once; again when the pins change.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# Train on the images in the package, sample, and draw: runs/demo.
demo: $(VENV)/.installed
	$(BIN)/sfumato train demo --out runs/demo --resume
	$(BIN)/sfumato sample runs/demo --count 80 --out runs/demo/samples.png
	$(BIN)/sfumato sample runs/demo --count 20 --out runs/demo/reverse.gif
	@echo "Look at runs/demo/samples.png (one class a column), runs/demo/reverse.gif and runs/demo/report.json."

# Every claim but those of test-slow. The tests of a file run in one process, so that they share what they train.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile -m "not slow"

# Trainings that are killed, several processes, other libraries' networks and samplers, the longest trainings of the doctor.
test-slow: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile -m slow

# Builds the wheel, installs it into an environment of its own, without extras, and uses it from there.
wheel: $(VENV)/.installed
	rm -rf build/wheel
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	test $$($(BIN)/python -m zipfile -l build/wheel/*.whl | grep -c FASHION-MNIST-LICENSE) = 1
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt build/wheel/*.whl
	! build/wheel/venv/bin/pip list --disable-pip-version-check | grep -iE '^(scikit-learn|scipy|tensorboard|grpcio) '
	cd build/wheel && venv/bin/sfumato sample zoo:digits --count 4 --out zoo.png
	cd build/wheel && for toy in moons swiss-roll; do venv/bin/sfumato train $$toy --set training.steps=20 --out $$toy || exit 1; done
	cd build/wheel && venv/bin/sfumato sample moons --count 10 --out points.csv
	cd build/wheel && venv/bin/sfumato train digits --steps 2 --set training.batch=8 --out digits
	! build/wheel/venv/bin/sfumato train moons --set training.trackers=[tensorboard] --out build/wheel/none 2> build/wheel/refusal
	grep -F "pip install 'sfumato[tensorboard]'" build/wheel/refusal

# The same checks as pre-commit's.
check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# What a GPU would find, without one: a CUDA build of torch (5.5 GB, kept in build/devices) with fake tensors. Not part of CI.
devices: build/devices/.installed
	PYTHONPATH=src:tests build/devices/bin/python tests/devices_cuda.py
	PYTHONPATH=src build/devices/bin/python -m pytest -q tests/test_devices.py

build/devices/.installed: constraints.txt
	$(PYTHON) -m venv build/devices
	build/devices/bin/pip install --quiet --disable-pip-version-check torch==2.14.1
	build/devices/bin/pip install --quiet --disable-pip-version-check -e . beartype==0.23.1 pytest
	touch $@

# What safety costs, how fast data come, accuracy, overhead and speed beside the peers: half an hour on an idle machine.
bench: $(VENV)/.installed
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/data.py
	benchmarks/accuracy/run.sh
	benchmarks/speed.sh
	$(BIN)/python benchmarks/operations.py

# What takes trainings: toys, likelihoods, and hours of quality for minutes of training.
bench-trained: $(VENV)/.installed
	$(BIN)/python benchmarks/likelihood.py
	$(BIN)/python benchmarks/toys.py
	benchmarks/quality/run.sh

# Breaks a seeded sample of the mathematics and counts how much of it the tests notice: within an hour on two cores.
mutants: $(VENV)/.installed
	$(BIN)/python tests/mutants.py --count 220 --seed 0 --jobs 2

docs: $(VENV)/.installed
	$(BIN)/sfumato verify --markdown > docs/ledger.md
	$(BIN)/pdoc --output-directory build/docs sfumato

clean:
	rm -rf $(VENV) build
