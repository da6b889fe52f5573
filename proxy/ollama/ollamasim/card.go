package ollamasim

// Take has other processes than Ollama's hold that much of the card's memory.
// Ollama sees it: models get what is left.
func (s *Sim) Take(bytes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken = bytes
}

// Card tells the memory of the simulated card: all of it, and what the models
// and the others hold.
func (s *Sim) Card() (total, models, others uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.loaded {
		models += r.vram
	}
	return s.cfg.VRAM, models, s.taken
}
