package residency_test

import (
	"context"
	"fmt"
	"time"

	"tenure/residency"
)

// instant loads any model at once and finds it as large as expected.
type instant struct{}

func (instant) Load(context.Context, residency.Model) (residency.Bytes, error) { return 0, nil }
func (instant) Unload(context.Context, residency.Model) error                  { return nil }

func ExampleScheduler() {
	s := residency.New(residency.Config{Budget: 20 * residency.GiB, MaxModels: 3}, residency.LRU{}, instant{})
	defer s.Close()

	mistral := residency.Model{Name: "mistral", Size: 7 * residency.GiB, Tier: residency.T1, LoadTime: 3 * time.Second}
	for range 2 {
		lease, err := s.Acquire(context.Background(), mistral, residency.Interactive)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(lease.Model.Name, "cold:", lease.Cold)
		lease.Release()
	}
	fmt.Println(s.State().Used)
	// Output:
	// mistral cold: true
	// mistral cold: false
	// 7.0 GiB
}
