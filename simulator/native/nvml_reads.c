/* NVML's queries on a device. None of them changes anything: they are what the agent's self-check may call. */
#define _GNU_SOURCE
#include "nvml.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

API nvml_return nvmlDeviceGetUUID(nvml_device handle, char *uuid, unsigned int length) {
    READ(handle, uuid, result = nvml_text(uuid, length, config->uuids[gpu]));
}

API nvml_return nvmlDeviceGetName(nvml_device handle, char *name, unsigned int length) {
    READ(handle, name, result = nvml_text(name, length, config->name));
}

API nvml_return nvmlDeviceGetIndex(nvml_device handle, unsigned int *index) {
    READ(handle, index, *index = (unsigned)gpu);
}

API nvml_return nvmlDeviceGetMinorNumber(nvml_device handle, unsigned int *number) {
    READ(handle, number, *number = (unsigned)gpu);
}

typedef struct {
    char bus_id_legacy[16];
    unsigned int domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} nvml_pci;

API nvml_return nvmlDeviceGetPciInfo_v3(nvml_device handle, nvml_pci *pci) {
    READ(handle, pci, {
        memset(pci, 0, sizeof *pci);
        pci->bus = (unsigned)gpu + 1;
        pci->device_id = 0x20b010de; /* an A100's */
        snprintf(pci->bus_id_legacy, sizeof pci->bus_id_legacy, "0000:%02X:00.0", pci->bus);
        snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", pci->bus);
    });
}

enum { ARCHITECTURE_AMPERE = 7 };

API nvml_return nvmlDeviceGetArchitecture(nvml_device handle, unsigned int *architecture) {
    READ(handle, architecture, *architecture = ARCHITECTURE_AMPERE);
}

API nvml_return nvmlDeviceGetCudaComputeCapability(nvml_device handle, int *major, int *minor) {
    if (minor == NULL) return INVALID_ARGUMENT;
    READ(handle, major, *major = 8; *minor = 0);
}

API nvml_return nvmlDeviceGetPersistenceMode(nvml_device handle, unsigned int *mode) { READ(handle, mode, *mode = 1); }

API nvml_return nvmlDeviceGetComputeMode(nvml_device handle, unsigned int *mode) { READ(handle, mode, *mode = 0); }

API nvml_return nvmlDeviceGetMigMode(nvml_device handle, unsigned int *current, unsigned int *pending) {
    if (pending == NULL) return INVALID_ARGUMENT;
    READ(handle, current, {
        if (device->faults.flags & PSIM_FAULT_NO_MIG)
            result = NOT_SUPPORTED;
        else
            *current = *pending = (device->faults.flags & PSIM_FAULT_MIG) != 0;
    });
}

API nvml_return nvmlDeviceGetMaxMigDeviceCount(nvml_device handle, unsigned int *count) {
    READ(handle, count, *count = device->faults.flags & PSIM_FAULT_NO_MIG ? 0 : 7);
}

enum { VIRTUALIZATION_NONE = 0, VIRTUALIZATION_VGPU = 2 };

API nvml_return nvmlDeviceGetVirtualizationMode(nvml_device handle, unsigned int *mode) {
    READ(handle, mode, *mode = device->faults.flags & PSIM_FAULT_VGPU ? VIRTUALIZATION_VGPU : VIRTUALIZATION_NONE);
}

typedef struct {
    unsigned long long total, free, used;
} nvml_memory;

API nvml_return nvmlDeviceGetMemoryInfo(nvml_device handle, nvml_memory *memory) {
    READ(handle, memory, memory->total = config->memory_bytes; memory->used = 0; memory->free = config->memory_bytes);
}

typedef struct {
    unsigned int gpu, memory;
} nvml_utilization;

API nvml_return nvmlDeviceGetUtilizationRates(nvml_device handle, nvml_utilization *rates) {
    READ(handle, rates, rates->gpu = model_running(node, gpu) ? 100 : 0; rates->memory = 0);
}

typedef struct {
    unsigned int pid;
    unsigned long long memory;
    unsigned int gpu_instance, compute_instance;
} nvml_process;

/* As on a real node the process ids are those of the processes' own namespaces where the caller cannot know better. */
static nvml_return processes(const gpu_state *device, int are_wanted, unsigned int *count, nvml_process *found) {
    unsigned int space = *count;
    *count = 0;
    for (int i = 0; are_wanted && i < PSIM_MAX_CLIENTS; i++) {
        if (!device->clients[i].used) continue;
        if (found != NULL && *count < space)
            found[*count] = (nvml_process){(unsigned)device->clients[i].pid, 0, UINT32_MAX, UINT32_MAX};
        ++*count;
    }
    return *count > (found == NULL ? 0 : space) ? INSUFFICIENT_SIZE : SUCCESS;
}

API nvml_return nvmlDeviceGetComputeRunningProcesses_v3(nvml_device handle, unsigned int *count, nvml_process *found) {
    READ(handle, count, result = processes(device, !(device->faults.flags & PSIM_FAULT_MPS), count, found));
}

/* Clients of an MPS server are listed here and not among the others. */
API nvml_return nvmlDeviceGetMPSComputeRunningProcesses_v3(nvml_device handle, unsigned int *count,
                                                           nvml_process *found) {
    READ(handle, count, result = processes(device, (device->faults.flags & PSIM_FAULT_MPS) != 0, count, found));
}

API nvml_return nvmlDeviceGetTemperature(nvml_device handle, int sensor, unsigned int *celsius) {
    if (sensor != 0) return INVALID_ARGUMENT;
    READ(handle, celsius, *celsius = (unsigned)lround(model_temperature(node, gpu)));
}

API nvml_return nvmlDeviceGetPowerUsage(nvml_device handle, unsigned int *milliwatts) {
    READ(handle, milliwatts, *milliwatts = (unsigned)lround(1000 * model_power_watts(node, gpu)));
}

static unsigned int limit_milliwatts(const psim_config *config, const gpu_state *device) {
    double cap = device->faults.power_cap_watts;
    return (unsigned)lround(1000 * (cap > 0 ? cap : config->power_limit_watts));
}

API nvml_return nvmlDeviceGetEnforcedPowerLimit(nvml_device handle, unsigned int *milliwatts) {
    READ(handle, milliwatts, *milliwatts = limit_milliwatts(config, device));
}

API nvml_return nvmlDeviceGetPowerManagementLimit(nvml_device handle, unsigned int *milliwatts) {
    READ(handle, milliwatts, *milliwatts = limit_milliwatts(config, device));
}

API nvml_return nvmlDeviceGetPowerManagementDefaultLimit(nvml_device handle, unsigned int *milliwatts) {
    READ(handle, milliwatts, *milliwatts = (unsigned)lround(1000 * config->power_limit_watts));
}

API nvml_return nvmlDeviceGetPowerManagementLimitConstraints(nvml_device handle, unsigned int *lowest,
                                                             unsigned int *highest) {
    if (highest == NULL) return INVALID_ARGUMENT;
    READ(handle, lowest, *highest = (unsigned)lround(1000 * config->power_limit_watts); *lowest = *highest / 4);
}

static unsigned long long published_millijoules(const gpu_state *device) {
    return (unsigned long long)(1000 * device->published_joules);
}

API nvml_return nvmlDeviceGetTotalEnergyConsumption(nvml_device handle, unsigned long long *millijoules) {
    READ(handle, millijoules, {
        device->calls.reads--;
        device->calls.energy_reads++;
        *millijoules = published_millijoules(device);
    });
}

API nvml_return nvmlDeviceGetClockInfo(nvml_device handle, int type, unsigned int *megahertz) {
    if (type < CLOCK_GRAPHICS || type > CLOCK_VIDEO) return INVALID_ARGUMENT;
    READ(handle, megahertz,
         *megahertz = type == CLOCK_MEM ? MEMORY_CLOCK_MEGAHERTZ : (unsigned)model_held_clock(node, gpu));
}

API nvml_return nvmlDeviceGetMaxClockInfo(nvml_device handle, int type, unsigned int *megahertz) {
    if (type < CLOCK_GRAPHICS || type > CLOCK_VIDEO) return INVALID_ARGUMENT;
    READ(handle, megahertz,
         *megahertz = type == CLOCK_MEM ? MEMORY_CLOCK_MEGAHERTZ : (unsigned)config->highest_clock_megahertz);
}

API nvml_return nvmlDeviceGetPerformanceState(nvml_device handle, unsigned int *state) { READ(handle, state, *state = 0); }

API nvml_return nvmlDeviceGetSupportedMemoryClocks(nvml_device handle, unsigned int *count, unsigned int *clocks) {
    READ(handle, count, {
        if (*count < 1 || clocks == NULL)
            result = INSUFFICIENT_SIZE;
        else
            clocks[0] = MEMORY_CLOCK_MEGAHERTZ;
        *count = 1;
    });
}

API nvml_return nvmlDeviceGetSupportedGraphicsClocks(nvml_device handle, unsigned int memory, unsigned int *count,
                                                     unsigned int *clocks) {
    READ(handle, count, {
        unsigned int all = (unsigned)((config->highest_clock_megahertz - config->lowest_clock_megahertz) /
                                      config->clock_step_megahertz + 1);
        if (memory != MEMORY_CLOCK_MEGAHERTZ) {
            result = NOT_FOUND;
        } else if (*count < all || clocks == NULL) {
            result = INSUFFICIENT_SIZE;
            *count = all;
        } else {
            for (unsigned int i = 0; i < all; i++)
                clocks[i] = (unsigned)(config->highest_clock_megahertz - (int)i * config->clock_step_megahertz);
            *count = all;
        }
    });
}

API nvml_return nvmlDeviceGetCurrentClocksEventReasons(nvml_device handle, unsigned long long *reasons) {
    READ(handle, reasons, *reasons = model_event_reasons(node, gpu));
}

API nvml_return nvmlDeviceGetCurrentClocksThrottleReasons(nvml_device handle, unsigned long long *reasons) {
    return nvmlDeviceGetCurrentClocksEventReasons(handle, reasons);
}

API nvml_return nvmlDeviceGetSupportedClocksEventReasons(nvml_device handle, unsigned long long *reasons) {
    READ(handle, reasons, *reasons = 0x1ff);
}

API nvml_return nvmlDeviceGetSupportedClocksThrottleReasons(nvml_device handle, unsigned long long *reasons) {
    return nvmlDeviceGetSupportedClocksEventReasons(handle, reasons);
}

static unsigned long long nanoseconds(double seconds) { return (unsigned long long)(1e9 * seconds); }

static long long microseconds_now(void) {
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    return (long long)time.tv_sec * 1000000 + time.tv_nsec / 1000;
}

enum { POLICY_POWER = 0, POLICY_THERMAL = 1, POLICY_RELIABILITY = 5, POLICY_APP_CLOCKS = 10, POLICY_BASE_CLOCKS = 11 };

typedef struct {
    unsigned long long reference_microseconds, violation_nanoseconds;
} nvml_violation;

API nvml_return nvmlDeviceGetViolationStatus(nvml_device handle, unsigned int policy, nvml_violation *violation) {
    if (policy > POLICY_RELIABILITY && policy != POLICY_APP_CLOCKS && policy != POLICY_BASE_CLOCKS)
        return INVALID_ARGUMENT;
    READ(handle, violation, {
        double seconds = policy == POLICY_POWER ? device->capped_seconds : 0;
        if (policy == POLICY_THERMAL) seconds = device->hot_seconds;
        *violation = (nvml_violation){(unsigned long long)microseconds_now(), nanoseconds(seconds)};
    });
}

enum {
    FIELD_POLICY_POWER = 74, FIELD_POLICY_THERMAL = 75, FIELD_ENERGY = 83, FIELD_POWER_AVERAGE = 185,
    FIELD_POWER_INSTANT = 186, FIELD_SOFTWARE_THERMAL = 269, FIELD_HARDWARE_THERMAL = 270, FIELD_POWER_BRAKE = 271
};
enum { VALUE_UNSIGNED_INT = 1, VALUE_UNSIGNED_LONG_LONG = 3 };

typedef struct {
    uint32_t field, scope;
    int64_t timestamp_microseconds, latency_microseconds;
    uint32_t type;
    int32_t result;
    union {
        unsigned int number;
        unsigned long long large;
    } value;
} nvml_field;

/* Each field has a result of its own: one that this device lacks does not fail the others. */
static void read_field(psim_node *node, int gpu, nvml_field *field) {
    const gpu_state *device = &node->state->gpus[gpu];
    field->timestamp_microseconds = microseconds_now();
    field->latency_microseconds = 0;
    field->result = SUCCESS;
    field->type = VALUE_UNSIGNED_LONG_LONG;
    switch (field->field) {
        case FIELD_POLICY_POWER: field->value.large = nanoseconds(device->capped_seconds); break;
        case FIELD_POLICY_THERMAL:
        case FIELD_SOFTWARE_THERMAL:
        case FIELD_HARDWARE_THERMAL: field->value.large = nanoseconds(device->hot_seconds); break;
        case FIELD_POWER_BRAKE: field->value.large = 0; break;
        case FIELD_ENERGY: field->value.large = published_millijoules(device); break;
        case FIELD_POWER_AVERAGE:
        case FIELD_POWER_INSTANT:
            field->type = VALUE_UNSIGNED_INT;
            field->value.number = (unsigned)lround(1000 * model_power_watts(node, gpu));
            break;
        default: field->result = NOT_SUPPORTED;
    }
}

API nvml_return nvmlDeviceGetFieldValues(nvml_device handle, int count, nvml_field *fields) {
    if (count < 1 || count > 1024) return INVALID_ARGUMENT;
    READ(handle, fields, for (int i = 0; i < count; i++) read_field(node, gpu, &fields[i]));
}
