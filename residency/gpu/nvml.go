//go:build linux && cgo

package gpu

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"tenure/residency"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// Probe reads the cards of this machine. It is safe for concurrent use, as
// NVML is.
type Probe struct {
	lib    nvml.Interface
	driver string
}

// Open loads the library, libnvidia-ml.so.1. Where there is none, or no card,
// the error wraps ErrUnavailable.
func Open() (*Probe, error) { return open(nvml.New()) }

func open(lib nvml.Interface) (*Probe, error) {
	switch ret := lib.Init(); ret {
	case nvml.SUCCESS:
	case nvml.ERROR_LIBRARY_NOT_FOUND:
		// Nothing was loaded that could name the error.
		return nil, fmt.Errorf("%w: no libnvidia-ml.so.1: no NVIDIA driver is installed, or this container was not given it", ErrUnavailable)
	default:
		return nil, fmt.Errorf("%w: NVML does not start: %w", ErrUnavailable, ret)
	}
	p := &Probe{lib: lib}
	n, ret := lib.DeviceGetCount()
	if ret != nvml.SUCCESS || n == 0 {
		err := fmt.Errorf("%w: NVML finds no card", ErrUnavailable)
		if ret != nvml.SUCCESS {
			err = fmt.Errorf("%w: NVML does not count cards: %w", ErrUnavailable, ret)
		}
		if ret := lib.Shutdown(); ret != nvml.SUCCESS {
			err = fmt.Errorf("%w; nor does it shut down: %w", err, ret)
		}
		return nil, err
	}
	if v, ret := lib.SystemGetDriverVersion(); ret == nvml.SUCCESS {
		p.driver = v
	}
	return p, nil
}

// Close gives the library back.
func (p *Probe) Close() error {
	if ret := p.lib.Shutdown(); ret != nvml.SUCCESS {
		return fmt.Errorf("closing NVML: %w", ret)
	}
	return nil
}

// Read looks at every card. A card without its memory's figures is an error;
// all else may be missing.
func (p *Probe) Read() (Reading, error) {
	n, ret := p.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return Reading{}, fmt.Errorf("counting cards: %w", ret)
	}
	r := Reading{Driver: p.driver, Cards: make([]Card, n)}
	for i := range r.Cards {
		d, ret := p.lib.DeviceGetHandleByIndex(i)
		if ret != nvml.SUCCESS {
			return Reading{}, fmt.Errorf("card %d: %w", i, ret)
		}
		if err := p.read(d, &r.Cards[i]); err != nil {
			return Reading{}, fmt.Errorf("card %d: %w", i, err)
		}
	}
	return r, nil
}

func (p *Probe) read(d nvml.Device, c *Card) error {
	before, err := p.processes(d)
	if err != nil {
		return err
	}
	// The older of the two calls: its used includes what the driver keeps for
	// itself, so total is used and free.
	m, ret := d.GetMemoryInfo()
	if ret != nvml.SUCCESS {
		return fmt.Errorf("memory: %w", ret)
	}
	c.Total, c.Used, c.Free = residency.Bytes(m.Total), residency.Bytes(m.Used), residency.Bytes(m.Free)
	// Three calls are no one moment. A process that came or left in between is
	// counted: whose memory it was is known, and not blamed on nobody.
	after, err := p.processes(d)
	if err != nil {
		return err
	}
	for pid, q := range before {
		if after[pid].Used <= q.Used {
			after[pid] = q
		}
	}
	c.Processes = slices.SortedFunc(maps.Values(after), func(a, b Process) int { return cmp.Compare(a.PID, b.PID) })

	if name, ret := d.GetName(); ret == nvml.SUCCESS {
		c.Name = name
	}
	if uuid, ret := d.GetUUID(); ret == nvml.SUCCESS {
		c.UUID = uuid
	}
	if u, ret := d.GetUtilizationRates(); ret == nvml.SUCCESS {
		c.Utilisation = new(int(u.Gpu))
	}
	if t, ret := d.GetTemperature(nvml.TEMPERATURE_GPU); ret == nvml.SUCCESS {
		c.Temperature = new(int(t))
	}
	if on, _, ret := d.GetEccMode(); ret == nvml.SUCCESS {
		c.ECC = &ECC{Enabled: on == nvml.FEATURE_ENABLED}
		if n, ret := d.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_CORRECTED, nvml.VOLATILE_ECC); ret == nvml.SUCCESS {
			c.ECC.Corrected = n
		}
		if n, ret := d.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC); ret == nvml.SUCCESS {
			c.ECC.Uncorrectable = n
		}
	}
	return nil
}

// processes lists who holds memory on a card, by process id.
func (p *Probe) processes(d nvml.Device) (map[int]Process, error) {
	compute, ret := d.GetComputeRunningProcesses()
	if ret != nvml.SUCCESS && ret != nvml.ERROR_NOT_SUPPORTED {
		return nil, fmt.Errorf("compute processes: %w", ret)
	}
	graphics, ret := d.GetGraphicsRunningProcesses()
	if ret != nvml.SUCCESS && ret != nvml.ERROR_NOT_SUPPORTED {
		return nil, fmt.Errorf("graphics processes: %w", ret)
	}
	list := make(map[int]Process, len(compute)+len(graphics))
	for _, q := range slices.Concat(compute, graphics) {
		pid, used := int(q.Pid), residency.Bytes(q.UsedGpuMemory)
		if q.UsedGpuMemory == unknown {
			used = 0
		}
		if known, ok := list[pid]; ok && known.Used >= used {
			continue // it computes and draws, and is in both lists
		}
		path, ret := p.lib.SystemGetProcessName(pid)
		if ret != nvml.SUCCESS {
			path = "" // another container's, or gone already
		}
		list[pid] = NewProcess(pid, used, path)
	}
	return list, nil
}

// unknown is NVML_VALUE_NOT_AVAILABLE.
const unknown = ^uint64(0)
