/* The few lines that a unit test needs: a check that names its place, and a node in a file of its own. */
#ifndef CHECK_H
#define CHECK_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../nvml.h"

#define CHECK(condition)                                                                  \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
            abort();                                                                      \
        }                                                                                 \
    } while (0)
#define CHECK_NEAR(value, expected) CHECK(fabs((value) - (double)(expected)) <= 1e-6 + 1e-6 * fabs((double)(expected)))

/* NVML as its users see it; no header of it belongs to the simulation. */
nvml_return nvmlInit_v2(void);
nvml_return nvmlShutdown(void);
nvml_return nvmlDeviceGetCount_v2(unsigned int *count);
nvml_return nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvml_device *handle);
nvml_return nvmlDeviceGetHandleByUUID(const char *uuid, nvml_device *handle);
nvml_return nvmlDeviceGetUUID(nvml_device handle, char *uuid, unsigned int length);
nvml_return nvmlDeviceGetClockInfo(nvml_device handle, int type, unsigned int *megahertz);
nvml_return nvmlDeviceGetCurrentClocksEventReasons(nvml_device handle, unsigned long long *reasons);
nvml_return nvmlDeviceGetTotalEnergyConsumption(nvml_device handle, unsigned long long *millijoules);
nvml_return nvmlDeviceGetPowerUsage(nvml_device handle, unsigned int *milliwatts);
nvml_return nvmlDeviceGetTemperature(nvml_device handle, int sensor, unsigned int *celsius);
nvml_return nvmlDeviceGetMigMode(nvml_device handle, unsigned int *current, unsigned int *pending);
nvml_return nvmlDeviceGetFieldValues(nvml_device handle, int count, void *fields);
nvml_return nvmlDeviceGetSupportedGraphicsClocks(nvml_device handle, unsigned int memory, unsigned int *count,
                                                 unsigned int *clocks);
nvml_return nvmlDeviceSetGpuLockedClocks(nvml_device handle, unsigned int lowest, unsigned int highest);
nvml_return nvmlDeviceResetGpuLockedClocks(nvml_device handle);
nvml_return nvmlDeviceSetMemoryLockedClocks(nvml_device handle, unsigned int lowest, unsigned int highest);

enum { FORWARD = 'F', TEST_GPUS = 3 };

/* A node of three GPUs whose forward takes 10 ms and 3 J at 1410 MHz, 20 ms and 4 J at 705. */
static inline psim_node *make_node(const char *path, psim_config changed) {
    psim_config config = changed;
    config.gpus = TEST_GPUS;
    config.lowest_clock_megahertz = 210;
    config.highest_clock_megahertz = 1410;
    config.clock_step_megahertz = 15;
    config.rows = 2;
    config.blocking_watts = 80;
    config.idle_watts = 50;
    config.power_limit_watts = 400;
    if (config.counter_refresh_seconds == 0) config.counter_refresh_seconds = 0.1;
    if (config.time_scale == 0) config.time_scale = 1;
    strcpy(config.name, "Simulated");
    for (int i = 0; i < TEST_GPUS; i++) snprintf(config.uuids[i], PSIM_UUID_LENGTH, "GPU-%08d", i);
    const psim_row rows[] = {{0, FORWARD, 1410, 0, 0.010, 3.0}, {0, FORWARD, 705, 0, 0.020, 4.0}};
    psim_node *node;
    CHECK(psim_create(path, &config, rows) == PSIM_OK);
    CHECK(psim_open(path, &node) == PSIM_OK);
    setenv("PERSEUS_SIMULATOR_STATE", path, 1);
    return node;
}

static inline nvml_device handle_of(unsigned int index) {
    nvml_device handle;
    CHECK(nvmlDeviceGetHandleByIndex_v2(index, &handle) == SUCCESS);
    return handle;
}

static inline psim_gpu_status status_of(psim_node *node, int gpu) {
    psim_gpu_status status;
    CHECK(psim_status(node, gpu, &status) == PSIM_OK);
    return status;
}

#endif
