package task

// keyWeights say what the property names of a response schema, or of a tool,
// are for. A name is split into its words first: matchScore is match, score.
var keyWeights = map[string][classes]float32{ //nolint:gochecknoglobals // compiled table
	// resume_parsing, bias_detection, matching_logic, script_generation, report_generation, general
	"email": {1.5}, "phone": {1.5}, "name": {0.5}, "firstname": {1.5}, "lastname": {1.5}, "education": {1.5}, "experience": {1}, "work": {1}, "employer": {1.5}, "employers": {1.5}, "skills": {1}, "languages": {1.5},
	"certifications": {1.5}, "degree": {1.5}, "degrees": {1.5}, "institution": {1.5}, "basics": {2}, "positions": {1}, "parse": {2.5}, "parsing": {2.5}, "extract": {2.5}, "extraction": {2.5}, "redact": {2.5}, "anonymize": {2.5}, "must": {0.5}, "nice": {0.5},
	"bias": {0, 3}, "biased": {0, 3}, "inclusive": {0, 2.5}, "masculine": {0, 2.5}, "feminine": {0, 2.5}, "gendered": {0, 2.5}, "gender": {0, 1}, "alternative": {0, 1}, "alternatives": {0, 1}, "severity": {0, 1}, "discriminatory": {0, 3}, "impact": {0, 1}, "ratios": {0, 1}, "fairness": {0, 2.5}, "ageist": {0, 2.5},
	"match": {0, 0, 2.5}, "matched": {0, 0, 2.5}, "matching": {0, 0, 2.5}, "fit": {0, 0, 2.5}, "missing": {0, 0, 1.5}, "gaps": {0, 0, 2}, "gap": {0, 0, 2}, "score": {0, 0, 1}, "rank": {0, 0, 2}, "ranking": {0, 0, 2}, "shortlist": {0, 0, 2.5}, "verdict": {0, 0, 1.5}, "hire": {0, 0, 1.5}, "requirement": {0, 0, 1}, "qualified": {0, 0, 2},
	"subject": {0, 0, 0, 1.5}, "body": {0, 0, 0, 1}, "message": {0, 0, 0, 2}, "greeting": {0, 0, 0, 2}, "question": {0, 0, 0, 1.5}, "questions": {0, 0, 0, 1.5}, "outreach": {0, 0, 0, 2.5}, "script": {0, 0, 0, 2.5}, "opener": {0, 0, 0, 2}, "draft": {0, 0, 0, 1.5}, "sms": {0, 0, 0, 2}, "inmail": {0, 0, 0, 2.5},
	"summary": {0, 0, 0, 0, 1.5}, "strengths": {0, 0, 0, 0, 1}, "weaknesses": {0, 0, 0, 0, 1}, "concerns": {0, 0, 0, 0, 1.5}, "recommendation": {0, 0, 0, 0, 0.5}, "headline": {0, 0, 0, 0, 1}, "highlights": {0, 0, 0, 0, 1.5}, "report": {0, 0, 0, 0, 2.5}, "debrief": {0, 0, 0, 0, 2.5}, "narrative": {0, 0, 0, 0, 2}, "overview": {0, 0, 0, 0, 1.5},
	"title": {0, 0, 0, 0, 0, 0.5}, "tags": {0, 0, 0, 0, 0, 2}, "queries": {0, 0, 0, 0, 0, 2},
}

// keyed tells the task that the response schema is for, or else the tools.
func keyed(in Input) (int, bool) {
	if k, ok := keysSay(in.SchemaKeys); ok {
		return k, true
	}
	return keysSay(in.Tools)
}

// keysSay weighs names; one task must stand out.
func keysSay(keys []string) (int, bool) {
	var z [classes]float32
	var word [24]byte
	n := 0
	flush := func() {
		for k, w := range keyWeights[string(word[:n])] {
			z[k] += w
		}
		n = 0
	}
	for _, key := range keys {
		lower := false
		for i := range len(key) {
			c := key[i]
			switch {
			case c >= 'A' && c <= 'Z':
				if lower {
					flush()
				}
				lower = false
				c |= 0x20
			case c >= 'a' && c <= 'z':
				lower = true
			default:
				flush()
				lower = false
				continue
			}
			if n < len(word) {
				word[n] = c
				n++
			}
		}
		flush()
	}
	best, next := 0, 1
	if z[1] > z[0] {
		best, next = 1, 0
	}
	for k := 2; k < classes; k++ {
		switch {
		case z[k] > z[best]:
			best, next = k, best
		case z[k] > z[next]:
			next = k
		}
	}
	return best, best != general && z[best] >= 2 && z[best] > 1.5*z[next]
}
