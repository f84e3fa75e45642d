/* NVML's C interface over the simulated node, as far as the project's programs and its neighbours use it.
 *
 * Signatures, error codes and constants follow NVIDIA's published API reference. A function that is absent here answers
 * FUNCTION_NOT_FOUND in the Python binding, as an old driver's would. */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "state.h"

#define API __attribute__((visibility("default")))

typedef int nvml_return;
typedef struct device *nvml_device; /* the GPU's index + 1 */

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, UNKNOWN = 999
};
enum { CLOCK_GRAPHICS = 0, CLOCK_SM = 1, CLOCK_MEM = 2, CLOCK_VIDEO = 3 };
enum { MEMORY_CLOCK_MEGAHERTZ = 1593 };

static pthread_mutex_t library_mutex = PTHREAD_MUTEX_INITIALIZER;
static int references;
static psim_node *node;

API nvml_return nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    nvml_return result = SUCCESS;
    pthread_mutex_lock(&library_mutex);
    if (references == 0) {
        const char *path = getenv("PERSEUS_SIMULATOR_STATE");
        if (path == NULL || psim_open(path, &node) != PSIM_OK) {
            result = DRIVER_NOT_LOADED;
        } else if (psim_read_init_fault(node)) {
            psim_close(node);
            node = NULL;
            result = UNKNOWN;
        }
    }
    if (result == SUCCESS) references++;
    pthread_mutex_unlock(&library_mutex);
    return result;
}

API nvml_return nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
API nvml_return nvmlInit(void) { return nvmlInitWithFlags(0); }

API nvml_return nvmlShutdown(void) {
    nvml_return result = SUCCESS;
    pthread_mutex_lock(&library_mutex);
    if (references == 0) {
        result = UNINITIALIZED;
    } else if (--references == 0) {
        psim_close(node);
        node = NULL;
    }
    pthread_mutex_unlock(&library_mutex);
    return result;
}

API const char *nvmlErrorString(nvml_return result) {
    switch (result) {
        case SUCCESS: return "Success";
        case UNINITIALIZED: return "Uninitialized";
        case INVALID_ARGUMENT: return "Invalid Argument";
        case NOT_SUPPORTED: return "Not Supported";
        case NO_PERMISSION: return "Insufficient Permissions";
        case NOT_FOUND: return "Not Found";
        case INSUFFICIENT_SIZE: return "Insufficient Size";
        case DRIVER_NOT_LOADED: return "Driver Not Loaded";
        case GPU_IS_LOST: return "GPU is lost";
        default: return "Unknown Error";
    }
}

/* Every call on a device passes here: who calls without init, with a bad handle or on a lost GPU hears of it, and the
 * device is brought up to now. The caller holds the GPU's mutex afterwards. */
static nvml_return enter(nvml_device handle, int *gpu) {
    if (references == 0) return UNINITIALIZED;
    intptr_t index = (intptr_t)handle - 1;
    if (index < 0 || index >= node->state->config.gpus) return INVALID_ARGUMENT;
    gpu_state *device = &node->state->gpus[index];
    double latency = device->faults.call_latency_seconds;
    if (latency > 0) {
        struct timespec pause = {(time_t)latency, (long)((latency - floor(latency)) * 1e9)};
        nanosleep(&pause, NULL);
    }
    if (state_lock(device) != PSIM_OK) return UNKNOWN;
    if (device->faults.flags & PSIM_FAULT_LOST) {
        state_unlock(device);
        return GPU_IS_LOST;
    }
    model_advance(node, (int)index, state_now());
    *gpu = (int)index;
    return SUCCESS;
}

#define READ(handle, statement)                       \
    do {                                              \
        int gpu;                                      \
        nvml_return entered = enter(handle, &gpu);    \
        if (entered != SUCCESS) return entered;       \
        gpu_state *device = &node->state->gpus[gpu];  \
        const psim_config *config = &node->state->config; \
        nvml_return result = SUCCESS;                 \
        (void)device, (void)config;                   \
        device->calls.reads++;                        \
        statement;                                    \
        state_unlock(device);                         \
        return result;                                \
    } while (0)

static nvml_return text(char *target, unsigned int length, const char *source) {
    if (target == NULL) return INVALID_ARGUMENT;
    if (strlen(source) + 1 > length) return INSUFFICIENT_SIZE;
    strcpy(target, source);
    return SUCCESS;
}

API nvml_return nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    return references ? text(version, length, "580.00.00-simulated") : UNINITIALIZED;
}

API nvml_return nvmlSystemGetNVMLVersion(char *version, unsigned int length) {
    return references ? text(version, length, "13.580.00") : UNINITIALIZED;
}

API nvml_return nvmlDeviceGetCount_v2(unsigned int *count) {
    if (references == 0) return UNINITIALIZED;
    if (count == NULL) return INVALID_ARGUMENT;
    *count = (unsigned int)node->state->config.gpus;
    return SUCCESS;
}

API nvml_return nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvml_device *handle) {
    if (references == 0) return UNINITIALIZED;
    if (handle == NULL || index >= (unsigned int)node->state->config.gpus) return INVALID_ARGUMENT;
    if (node->state->gpus[index].faults.flags & PSIM_FAULT_LOST) return GPU_IS_LOST;
    *handle = (nvml_device)(intptr_t)(index + 1);
    return SUCCESS;
}

API nvml_return nvmlDeviceGetHandleByUUID(const char *uuid, nvml_device *handle) {
    if (references == 0) return UNINITIALIZED;
    if (uuid == NULL || handle == NULL) return INVALID_ARGUMENT;
    for (int i = 0; i < node->state->config.gpus; i++)
        if (strcmp(node->state->config.uuids[i], uuid) == 0) return nvmlDeviceGetHandleByIndex_v2((unsigned)i, handle);
    return NOT_FOUND;
}

API nvml_return nvmlDeviceGetUUID(nvml_device handle, char *uuid, unsigned int length) {
    READ(handle, result = text(uuid, length, config->uuids[gpu]));
}

API nvml_return nvmlDeviceGetName(nvml_device handle, char *name, unsigned int length) {
    READ(handle, result = text(name, length, config->name));
}

API nvml_return nvmlDeviceGetIndex(nvml_device handle, unsigned int *index) { READ(handle, *index = (unsigned)gpu); }

API nvml_return nvmlDeviceGetMinorNumber(nvml_device handle, unsigned int *number) {
    READ(handle, *number = (unsigned)gpu);
}

API nvml_return nvmlDeviceGetPersistenceMode(nvml_device handle, unsigned int *mode) { READ(handle, *mode = 1); }

API nvml_return nvmlDeviceGetMigMode(nvml_device handle, unsigned int *current, unsigned int *pending) {
    READ(handle, *current = *pending = (device->faults.flags & PSIM_FAULT_MIG) != 0);
}

typedef struct {
    unsigned long long total, free, used;
} nvml_memory;

API nvml_return nvmlDeviceGetMemoryInfo(nvml_device handle, nvml_memory *memory) {
    READ(handle, memory->total = config->memory_bytes; memory->used = 0; memory->free = config->memory_bytes);
}

typedef struct {
    unsigned int gpu, memory;
} nvml_utilization;

API nvml_return nvmlDeviceGetUtilizationRates(nvml_device handle, nvml_utilization *rates) {
    READ(handle, rates->gpu = model_running(node, gpu) ? 100 : 0; rates->memory = 0);
}

API nvml_return nvmlDeviceGetTemperature(nvml_device handle, int sensor, unsigned int *celsius) {
    if (sensor != 0) return INVALID_ARGUMENT;
    READ(handle, *celsius = (unsigned)lround(model_temperature(node, gpu)));
}

API nvml_return nvmlDeviceGetPowerUsage(nvml_device handle, unsigned int *milliwatts) {
    READ(handle, *milliwatts = (unsigned)lround(1000 * model_power_watts(node, gpu)));
}

static unsigned int limit_milliwatts(const psim_config *config, const gpu_state *device) {
    double cap = device->faults.power_cap_watts;
    return (unsigned)lround(1000 * (cap > 0 ? cap : config->power_limit_watts));
}

API nvml_return nvmlDeviceGetEnforcedPowerLimit(nvml_device handle, unsigned int *milliwatts) {
    READ(handle, *milliwatts = limit_milliwatts(config, device));
}

API nvml_return nvmlDeviceGetPowerManagementLimit(nvml_device handle, unsigned int *milliwatts) {
    READ(handle, *milliwatts = limit_milliwatts(config, device));
}

API nvml_return nvmlDeviceGetTotalEnergyConsumption(nvml_device handle, unsigned long long *millijoules) {
    READ(handle, device->calls.reads--; device->calls.energy_reads++;
         *millijoules = (unsigned long long)(1000 * device->published_joules));
}

API nvml_return nvmlDeviceGetClockInfo(nvml_device handle, int type, unsigned int *megahertz) {
    if (type < CLOCK_GRAPHICS || type > CLOCK_VIDEO) return INVALID_ARGUMENT;
    READ(handle, *megahertz = type == CLOCK_MEM ? MEMORY_CLOCK_MEGAHERTZ : (unsigned)model_held_clock(node, gpu));
}

API nvml_return nvmlDeviceGetMaxClockInfo(nvml_device handle, int type, unsigned int *megahertz) {
    if (type < CLOCK_GRAPHICS || type > CLOCK_VIDEO) return INVALID_ARGUMENT;
    READ(handle, *megahertz = type == CLOCK_MEM ? MEMORY_CLOCK_MEGAHERTZ : (unsigned)config->highest_clock_megahertz);
}

API nvml_return nvmlDeviceGetSupportedMemoryClocks(nvml_device handle, unsigned int *count, unsigned int *clocks) {
    READ(handle, if (*count < 1 || clocks == NULL) result = INSUFFICIENT_SIZE; else clocks[0] = MEMORY_CLOCK_MEGAHERTZ;
         *count = 1);
}

API nvml_return nvmlDeviceGetSupportedGraphicsClocks(nvml_device handle, unsigned int memory, unsigned int *count,
                                                     unsigned int *clocks) {
    if (memory != MEMORY_CLOCK_MEGAHERTZ) return NOT_FOUND;
    READ(handle, {
        unsigned int all = (unsigned)((config->highest_clock_megahertz - config->lowest_clock_megahertz) /
                                      config->clock_step_megahertz + 1);
        if (*count < all || clocks == NULL) {
            result = INSUFFICIENT_SIZE;
        } else {
            for (unsigned int i = 0; i < all; i++)
                clocks[i] = (unsigned)(config->highest_clock_megahertz - (int)i * config->clock_step_megahertz);
        }
        *count = all;
    });
}

API nvml_return nvmlDeviceGetCurrentClocksEventReasons(nvml_device handle, unsigned long long *reasons) {
    READ(handle, *reasons = model_event_reasons(node, gpu));
}

API nvml_return nvmlDeviceGetCurrentClocksThrottleReasons(nvml_device handle, unsigned long long *reasons) {
    return nvmlDeviceGetCurrentClocksEventReasons(handle, reasons);
}

API nvml_return nvmlDeviceGetSupportedClocksEventReasons(nvml_device handle, unsigned long long *reasons) {
    READ(handle, *reasons = 0x1ff);
}

API nvml_return nvmlDeviceGetSupportedClocksThrottleReasons(nvml_device handle, unsigned long long *reasons) {
    return nvmlDeviceGetSupportedClocksEventReasons(handle, reasons);
}

static nvml_return refused(const psim_config *config, const gpu_state *device) {
    if (device->faults.flags & PSIM_FAULT_NO_PERMISSION) return NO_PERMISSION;
    if (config->administrators_only && geteuid() != 0) return NO_PERMISSION;
    if (device->faults.flags & PSIM_FAULT_NOT_SUPPORTED) return NOT_SUPPORTED;
    if (device->faults.flags & PSIM_FAULT_UNKNOWN) return UNKNOWN;
    return SUCCESS;
}

static nvml_return change_clocks(nvml_device handle, clock_range range) {
    int gpu;
    nvml_return result = enter(handle, &gpu);
    if (result != SUCCESS) return result;
    gpu_state *device = &node->state->gpus[gpu];
    result = refused(&node->state->config, device);
    if (result != SUCCESS) {
        device->calls.refused++;
    } else {
        *(range.locked ? &device->calls.set_locked_clocks : &device->calls.reset_locked_clocks) += 1;
        model_request(node, gpu, range);
        state_wake(device);
    }
    state_unlock(device);
    return result;
}

API nvml_return nvmlDeviceSetGpuLockedClocks(nvml_device handle, unsigned int lowest, unsigned int highest) {
    if (highest < lowest || highest > 100000 || highest == 0) return INVALID_ARGUMENT;
    return change_clocks(handle, (clock_range){1, (int32_t)lowest, (int32_t)highest});
}

API nvml_return nvmlDeviceResetGpuLockedClocks(nvml_device handle) {
    return change_clocks(handle, (clock_range){0, 0, 0});
}

/* Memory clocks are left alone by everybody: the simulated device does not offer them. */
API nvml_return nvmlDeviceSetMemoryLockedClocks(nvml_device handle, unsigned int lowest, unsigned int highest) {
    (void)lowest, (void)highest;
    READ(handle, result = NOT_SUPPORTED);
}

API nvml_return nvmlDeviceResetMemoryLockedClocks(nvml_device handle) { READ(handle, result = NOT_SUPPORTED); }
