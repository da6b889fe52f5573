//go:build linux && cgo

package gpu

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tenure/residency"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// TestMain turns the test's program into one that reads the cards, which a
// test runs as a child: the path of the library counts from a program's start.
func TestMain(m *testing.M) {
	if os.Getenv("READ_CARDS") == "" {
		os.Exit(m.Run())
	}
	if err := readCards(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func readCards() error {
	p, err := Open()
	if err != nil {
		return err
	}
	r, err := p.Read()
	if err != nil {
		return err
	}
	out := struct {
		Reading
		Ollama, Taken residency.Bytes
		Others        []Process
	}{r, r.Ollama(), r.Used() - r.Ollama(), r.Others()}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		return err
	}
	return p.Close()
}

// standIn builds the stand-in for the driver's library and returns how a child
// finds it, and how to set its figures.
func standIn(t *testing.T) (environ []string, figures func(lines ...string)) {
	t.Helper()
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("no C compiler (cc) to build the stand-in for libnvidia-ml.so.1 with")
	}
	dir := t.TempDir()
	out, err := exec.CommandContext(t.Context(), cc, "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror",
		"-o", filepath.Join(dir, "libnvidia-ml.so.1"), filepath.Join("testdata", "nvml.c")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	file := filepath.Join(dir, "figures")
	return append(os.Environ(), "READ_CARDS=1", "LD_LIBRARY_PATH="+dir, "NVML_FIGURES="+file), func(lines ...string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func child(t *testing.T, environ []string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = environ
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// The real way to the figures: a library is opened, its versioned functions
// are found, structures cross the border to C.
func TestReadThroughTheLibrary(t *testing.T) {
	environ, figures := standIn(t)
	figures("memory 25757220864 12884901888", "load 97", "heat 71", "ecc 1 5 2",
		"compute 4100 6442450944 /usr/local/bin/ollama",
		"compute 4200 1073741824 /usr/lib/ollama/llama-server",
		"compute 5000 4294967296 /opt/train/python3",
		"graphics 5000 4294967296 /opt/train/python3",
		"graphics 900 104857600 /usr/lib/xorg/Xorg",
		"compute 901 -1",
	)
	out, errs, err := child(t, environ)
	if err != nil {
		t.Fatalf("%v\n%s", err, errs)
	}
	var got struct {
		Reading
		Ollama, Taken residency.Bytes
		Others        []Process
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	percent, celsius := 97, 71
	want := Card{
		Name: "NVIDIA RTX A5000", UUID: "GPU-stand-in-1",
		Total: 25757220864, Used: 12884901888, Free: 12872318976, Utilisation: &percent, Temperature: &celsius,
		ECC: &ECC{Enabled: true, Corrected: 5, Uncorrectable: 2},
		Processes: []Process{
			{PID: 900, Used: 100 * residency.MiB, Name: "Xorg"},
			{PID: 901},
			{PID: 4100, Used: 6 * residency.GiB, Name: "ollama"},
			{PID: 4200, Used: residency.GiB, Name: "llama-server"},
			{PID: 5000, Used: 4 * residency.GiB, Name: "python3"},
		},
	}
	if diff := cmp.Diff([]Card{want}, got.Cards, cmpopts.IgnoreUnexported(Process{})); diff != "" || got.Driver != "stand-in 1.0" {
		t.Errorf("driver %q, card (-want +got):\n%s", got.Driver, diff)
	}
	if got.Ollama != 7*residency.GiB || got.Taken != 5*residency.GiB {
		t.Errorf("%v are Ollama's and %v taken by others, want 7 and 5 GiB", got.Ollama, got.Taken)
	}
	if len(got.Others) != 3 || got.Others[0].PID != 5000 || got.Others[1].PID != 900 || got.Others[2].PID != 901 {
		t.Errorf("others are %v, want the largest first", got.Others)
	}
}

// A card that tells only its memory is read; one that does not is not.
func TestReadWhatThereIs(t *testing.T) {
	environ, figures := standIn(t)
	figures("memory 24000000000 1000000000")
	out, errs, err := child(t, environ)
	if err != nil {
		t.Fatalf("%v\n%s", err, errs)
	}
	for _, want := range []string{`"utilisation_percent":null`, `"temperature_c":null`, `"ecc":null`, `"free_bytes":23000000000`} {
		if !strings.Contains(out, want) {
			t.Errorf("%s lacks %s", out, want)
		}
	}
	for lines, want := range map[string]string{
		"load 5":                                 "card 0: memory: ",
		"init 9":                                 "gpu: no figures: NVML does not start", // 9: the driver is not loaded
		"cards 0\nmemory 24000000000 1000000000": "gpu: no figures: NVML finds no card",
	} {
		figures(lines)
		if _, errs, err := child(t, environ); err == nil || !strings.Contains(errs, want) {
			t.Errorf("%q: %v %q, want %q", lines, err, errs, want)
		}
	}
}

// Without a driver it is said what is missing.
func TestNoLibrary(t *testing.T) {
	p, err := Open()
	if err == nil {
		t.Cleanup(func() { _ = p.Close() })
		t.Skip("this machine has an NVIDIA driver")
	}
	if !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
}

// device is a card by go-nvml's own mock.
func device(processes func() ([]nvml.ProcessInfo, nvml.Return)) *mock.Device {
	return &mock.Device{
		GetMemoryInfoFunc: func() (nvml.Memory, nvml.Return) {
			return nvml.Memory{Total: 24 << 30, Used: 10 << 30, Free: 14 << 30}, nvml.SUCCESS
		},
		GetComputeRunningProcessesFunc:  processes,
		GetGraphicsRunningProcessesFunc: func() ([]nvml.ProcessInfo, nvml.Return) { return nil, nvml.ERROR_NOT_SUPPORTED },
		GetNameFunc:                     func() (string, nvml.Return) { return "A5000", nvml.SUCCESS },
		GetUUIDFunc:                     func() (string, nvml.Return) { return "", nvml.ERROR_UNKNOWN },
		GetUtilizationRatesFunc:         func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{}, nvml.ERROR_NOT_SUPPORTED },
		GetTemperatureFunc:              func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 0, nvml.ERROR_NOT_SUPPORTED },
		GetEccModeFunc: func() (nvml.EnableState, nvml.EnableState, nvml.Return) {
			return 0, 0, nvml.ERROR_NOT_SUPPORTED
		},
	}
}

func mocked(cards ...nvml.Device) *mock.Interface {
	return &mock.Interface{
		InitFunc:                   func() nvml.Return { return nvml.SUCCESS },
		ShutdownFunc:               func() nvml.Return { return nvml.SUCCESS },
		SystemGetDriverVersionFunc: func() (string, nvml.Return) { return "550", nvml.SUCCESS },
		DeviceGetCountFunc:         func() (int, nvml.Return) { return len(cards), nvml.SUCCESS },
		DeviceGetHandleByIndexFunc: func(i int) (nvml.Device, nvml.Return) { return cards[i], nvml.SUCCESS },
		SystemGetProcessNameFunc:   func(int) (string, nvml.Return) { return "/usr/bin/ollama", nvml.SUCCESS },
	}
}

// A runner that comes or goes while the figures are read is still known as
// Ollama's, so its memory is not blamed on others.
func TestRunnerLeavesBetweenTwoCalls(t *testing.T) {
	calls := 0
	p, err := open(mocked(device(func() ([]nvml.ProcessInfo, nvml.Return) {
		calls++
		if calls == 1 {
			return []nvml.ProcessInfo{{Pid: 7, UsedGpuMemory: 8 << 30}, {Pid: 8, UsedGpuMemory: 1 << 30}}, nvml.SUCCESS
		}
		return []nvml.ProcessInfo{{Pid: 8, UsedGpuMemory: 2 << 30}}, nvml.SUCCESS
	})))
	if err != nil {
		t.Fatal(err)
	}
	r, err := p.Read()
	if err != nil || r.Ollama() != 10*residency.GiB || r.Total() != 24*residency.GiB || r.Used() != 10*residency.GiB {
		t.Errorf("%v: %v of Ollama's in %+v, want 8 and 2 GiB", err, r.Ollama(), r)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// A card that fell off the bus is an error that names it.
func TestLostCard(t *testing.T) {
	healthy := device(func() ([]nvml.ProcessInfo, nvml.Return) { return nil, nvml.SUCCESS })
	lost := device(func() ([]nvml.ProcessInfo, nvml.Return) { return nil, nvml.ERROR_GPU_IS_LOST })
	p, err := open(mocked(healthy, lost))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Read(); !errors.Is(err, nvml.ERROR_GPU_IS_LOST) || !strings.Contains(err.Error(), "card 1") {
		t.Errorf("got %v, want a lost card 1", err)
	}
}
