/*
 * A stand-in for libnvidia-ml.so.1: one card, whose figures are read anew at
 * every call from the file named by NVML_FIGURES. Its lines:
 *
 *   memory TOTAL USED            bytes
 *   compute PID BYTES PATH       a process; BYTES -1: not known
 *   graphics PID BYTES PATH
 *   load PERCENT
 *   heat CELSIUS
 *   ecc ENABLED CORRECTED UNCORRECTED
 *   cards N                      1 unless given
 *   init N                       what nvmlInit returns
 *
 * What the file does not name is "not supported". The types are those of
 * NVIDIA's nvml.h.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7 };

typedef struct { unsigned pid; unsigned long long used; unsigned gpu, compute; } process;
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned gpu, memory; } utilisation;

/* next copies the words behind the next line that begins with key. */
static int next(FILE *f, const char *key, char *words, size_t size)
{
	char line[4096];
	size_t n = strlen(key);
	while (fgets(line, sizeof line, f))
		if (!strncmp(line, key, n) && line[n] == ' ') {
			line[strcspn(line, "\n")] = 0;
			snprintf(words, size, "%s", line + n + 1);
			return 1;
		}
	return 0;
}

static int find(const char *key, char *words, size_t size)
{
	const char *path = getenv("NVML_FIGURES");
	FILE *f = path ? fopen(path, "r") : NULL;
	int found = f && next(f, key, words, size);
	if (f)
		fclose(f);
	return found;
}

static int number(const char *key, unsigned *value)
{
	char words[4096];
	return find(key, words, sizeof words) && sscanf(words, "%u", value) == 1;
}

int nvmlInit_v2(void)
{
	unsigned n = SUCCESS;
	number("init", &n);
	return n;
}

int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int e) { return e == NOT_SUPPORTED ? "Not Supported" : "stand-in error"; }

int nvmlSystemGetDriverVersion(char *version, unsigned size)
{
	snprintf(version, size, "stand-in 1.0");
	return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *n)
{
	*n = 1;
	number("cards", n);
	return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **device)
{
	*device = (void *)(size_t)(i + 1);
	return SUCCESS;
}

int nvmlDeviceGetName(void *device, char *name, unsigned size)
{
	(void)device;
	snprintf(name, size, "NVIDIA RTX A5000");
	return SUCCESS;
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned size)
{
	snprintf(uuid, size, "GPU-stand-in-%zu", (size_t)device);
	return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *device, memory *m)
{
	char words[4096];
	(void)device;
	if (!find("memory", words, sizeof words) || sscanf(words, "%llu %llu", &m->total, &m->used) != 2)
		return NOT_SUPPORTED;
	m->free = m->total - m->used;
	return SUCCESS;
}

static int processes(const char *key, unsigned *n, process *list)
{
	const char *path = getenv("NVML_FIGURES");
	FILE *f = path ? fopen(path, "r") : NULL;
	unsigned room = *n;
	char words[4096];
	*n = 0;
	while (f && next(f, key, words, sizeof words)) {
		unsigned pid;
		long long used;
		if (sscanf(words, "%u %lld", &pid, &used) != 2)
			continue;
		if (*n < room)
			list[*n] = (process){pid, (unsigned long long)used, ~0u, ~0u};
		++*n;
	}
	if (f)
		fclose(f);
	return *n > room ? TOO_SMALL : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *n, process *list)
{
	(void)device;
	return processes("compute", n, list);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *n, process *list)
{
	(void)device;
	return processes("graphics", n, list);
}

int nvmlSystemGetProcessName(unsigned pid, char *name, unsigned size)
{
	const char *keys[] = {"compute", "graphics"};
	const char *path = getenv("NVML_FIGURES");
	for (int i = 0; i < 2; i++) {
		FILE *f = path ? fopen(path, "r") : NULL;
		char words[4096], program[4096];
		unsigned p;
		while (f && next(f, keys[i], words, sizeof words))
			if (sscanf(words, "%u %*d %4095s", &p, program) == 2 && p == pid) {
				fclose(f);
				snprintf(name, size, "%s", program);
				return SUCCESS;
			}
		if (f)
			fclose(f);
	}
	return NOT_FOUND;
}

int nvmlDeviceGetUtilizationRates(void *device, utilisation *u)
{
	(void)device;
	u->memory = 0;
	return number("load", &u->gpu) ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *t)
{
	(void)device;
	return sensor == 0 && number("heat", t) ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetEccMode(void *device, unsigned *now, unsigned *pending)
{
	(void)device;
	*pending = 0;
	return number("ecc", now) ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetTotalEccErrors(void *device, int type, int counter, unsigned long long *n)
{
	char words[4096];
	unsigned long long errors[2];
	(void)device;
	if (counter != 0 || type < 0 || type > 1)
		return INVALID;
	if (!find("ecc", words, sizeof words) || sscanf(words, "%*u %llu %llu", &errors[0], &errors[1]) != 2)
		return NOT_SUPPORTED;
	*n = errors[type];
	return SUCCESS;
}
