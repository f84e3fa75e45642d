/* Unit tests of the simulated device and of NVML's answers. Run under sanitizers and valgrind: `make check`, `make valgrind`.
 *
 * Usage: unit FOLDER. Every test gets a node of its own in the folder. */
#include <pthread.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

static const char *state;

static void sleep_seconds(double seconds) {
    struct timespec pause = {(time_t)seconds, (long)((seconds - floor(seconds)) * 1e9)};
    nanosleep(&pause, NULL);
}

static void nothing_answers_before_init(void) {
    unsigned int number;
    nvml_device handle;
    CHECK(nvmlDeviceGetCount_v2(&number) == UNINITIALIZED);
    CHECK(nvmlDeviceGetHandleByIndex_v2(0, &handle) == UNINITIALIZED);
    CHECK(nvmlDeviceResetGpuLockedClocks((nvml_device)1) == UNINITIALIZED);
    CHECK(nvmlShutdown() == UNINITIALIZED);
    unsetenv("PERSEUS_SIMULATOR_STATE");
    CHECK(nvmlInit_v2() == DRIVER_NOT_LOADED);
}

static void init_answers_unknown_and_counts_its_users(void) {
    psim_node *node = make_node(state, (psim_config){0});
    CHECK(psim_inject_init_unknown(node, 1) == PSIM_OK);
    CHECK(nvmlInit_v2() == UNKNOWN);
    CHECK(psim_inject_init_unknown(node, 0) == PSIM_OK);
    CHECK(nvmlInit_v2() == SUCCESS && nvmlInit_v2() == SUCCESS);
    unsigned int count;
    CHECK(nvmlShutdown() == SUCCESS && nvmlDeviceGetCount_v2(&count) == SUCCESS && count == TEST_GPUS);
    CHECK(nvmlShutdown() == SUCCESS && nvmlDeviceGetCount_v2(&count) == UNINITIALIZED);
    psim_close(node);
}

static void null_and_bad_handles_are_invalid_arguments(void) {
    psim_node *node = make_node(state, (psim_config){0});
    CHECK(nvmlInit_v2() == SUCCESS);
    nvml_device handle = handle_of(0);
    unsigned int number;
    CHECK(nvmlDeviceGetClockInfo(handle, 1, NULL) == INVALID_ARGUMENT);
    CHECK(nvmlDeviceGetTotalEnergyConsumption(handle, NULL) == INVALID_ARGUMENT);
    CHECK(nvmlDeviceGetMigMode(handle, &number, NULL) == INVALID_ARGUMENT);
    CHECK(nvmlDeviceGetFieldValues(handle, 1, NULL) == INVALID_ARGUMENT);
    CHECK(nvmlDeviceGetFieldValues(handle, 0, &number) == INVALID_ARGUMENT);
    CHECK(nvmlDeviceGetUUID(handle, NULL, 80) == INVALID_ARGUMENT);
    CHECK(nvmlDeviceGetHandleByUUID(NULL, &handle) == INVALID_ARGUMENT);
    CHECK(nvmlDeviceGetHandleByUUID("GPU-none", &handle) == NOT_FOUND);
    for (intptr_t bad = -1; bad <= TEST_GPUS + 1; bad++)
        if (bad < 1 || bad > TEST_GPUS)
            CHECK(nvmlDeviceGetPowerUsage((nvml_device)bad, &number) == INVALID_ARGUMENT);
    CHECK(nvmlShutdown() == SUCCESS);
    psim_close(node);
}

static void texts_and_lists_that_do_not_fit_write_nothing_beyond(void) {
    psim_node *node = make_node(state, (psim_config){0});
    CHECK(nvmlInit_v2() == SUCCESS);
    nvml_device handle = handle_of(0);
    char *small = malloc(12);
    CHECK(nvmlDeviceGetUUID(handle, small, 12) == INSUFFICIENT_SIZE);
    CHECK(nvmlDeviceGetUUID(handle, small, 0) == INSUFFICIENT_SIZE);
    free(small);
    unsigned int count = 5, *clocks = malloc(5 * sizeof *clocks);
    CHECK(nvmlDeviceGetSupportedGraphicsClocks(handle, MEMORY_CLOCK_MEGAHERTZ, &count, clocks) == INSUFFICIENT_SIZE);
    CHECK(count == 81);
    CHECK(nvmlDeviceGetSupportedGraphicsClocks(handle, 1, &count, clocks) == NOT_FOUND);
    free(clocks);
    clocks = malloc(count * sizeof *clocks);
    CHECK(nvmlDeviceGetSupportedGraphicsClocks(handle, MEMORY_CLOCK_MEGAHERTZ, &count, clocks) == SUCCESS);
    CHECK(clocks[0] == 1410 && clocks[80] == 210);
    free(clocks);
    CHECK(nvmlShutdown() == SUCCESS);
    psim_close(node);
}

static void a_lock_outlives_the_process_that_set_it(void) {
    psim_node *node = make_node(state, (psim_config){0});
    pid_t child = fork();
    if (child == 0) {
        CHECK(nvmlInit_v2() == SUCCESS);
        CHECK(nvmlDeviceSetGpuLockedClocks(handle_of(1), 810, 810) == SUCCESS);
        kill(getpid(), SIGKILL);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
    CHECK(status_of(node, 1).locked && status_of(node, 1).locked_highest_megahertz == 810);
    CHECK(!status_of(node, 0).locked && !status_of(node, 2).locked);
    psim_close(node);
}

static void success_means_requested_and_not_held(void) {
    psim_node *node = make_node(state, (psim_config){0});
    CHECK(nvmlInit_v2() == SUCCESS);
    psim_client *client;
    CHECK(psim_client_open(node, 0, &client) == PSIM_OK);
    psim_faults capped = {.slowdown = 1, .power_cap_watts = 60};
    CHECK(psim_inject(node, 0, &capped) == PSIM_OK);
    CHECK(nvmlDeviceSetGpuLockedClocks(handle_of(0), 1410, 1410) == SUCCESS);
    unsigned int held;
    unsigned long long reasons;
    CHECK(nvmlDeviceGetClockInfo(handle_of(0), CLOCK_SM, &held) == SUCCESS && held == 210);
    CHECK(nvmlDeviceGetCurrentClocksEventReasons(handle_of(0), &reasons) == SUCCESS && reasons == 0x4);
    sleep_seconds(0.02);
    CHECK(status_of(node, 0).capped_seconds >= 0.02 && status_of(node, 0).hot_seconds == 0);
    psim_client_close(client);
    CHECK(nvmlShutdown() == SUCCESS);
    psim_close(node);
}

static void a_refused_call_changes_nothing_and_is_logged_with_its_code(void) {
    const struct {
        uint32_t flag;
        nvml_return result;
    } faults[] = {{PSIM_FAULT_NO_PERMISSION, NO_PERMISSION}, {PSIM_FAULT_NOT_SUPPORTED, NOT_SUPPORTED}, {PSIM_FAULT_UNKNOWN, UNKNOWN}};
    psim_node *node = make_node(state, (psim_config){0});
    CHECK(nvmlInit_v2() == SUCCESS);
    nvml_device handle = handle_of(0);
    CHECK(nvmlDeviceSetGpuLockedClocks(handle, 900, 900) == SUCCESS);
    psim_clock_call calls[4];
    int count;
    for (int i = 0; i < 3; i++) {
        psim_faults refusing = {.flags = faults[i].flag, .slowdown = 1};
        CHECK(psim_inject(node, 0, &refusing) == PSIM_OK);
        CHECK(nvmlDeviceResetGpuLockedClocks(handle) == faults[i].result);
        CHECK(status_of(node, 0).locked_highest_megahertz == 900);
        CHECK(psim_clock_calls(node, 0, (uint64_t)i + 1, calls, 4, &count) == PSIM_OK);
        CHECK(count == 1 && calls[0].result == faults[i].result && !calls[0].locked);
    }
    CHECK(status_of(node, 0).calls.refused == 3 && status_of(node, 0).calls.set_locked_clocks == 1);
    CHECK(nvmlDeviceSetMemoryLockedClocks(handle, 1, 2) == NOT_SUPPORTED);
    CHECK(nvmlShutdown() == SUCCESS);
    psim_close(node);
}

static void the_call_log_keeps_the_newest_and_their_order(void) {
    psim_node *node = make_node(state, (psim_config){0});
    CHECK(nvmlInit_v2() == SUCCESS);
    nvml_device handle = handle_of(0);
    enum { CALLS = PSIM_CALL_LOG + 88 };
    for (unsigned int i = 0; i < CALLS; i++) CHECK(nvmlDeviceSetGpuLockedClocks(handle, 1 + i, 1 + i) == SUCCESS);
    psim_clock_call *calls = malloc(PSIM_CALL_LOG * sizeof *calls);
    int count;
    CHECK(psim_clock_calls(node, 0, 0, calls, PSIM_CALL_LOG, &count) == PSIM_OK && count == PSIM_CALL_LOG);
    for (int i = 0; i < count; i++) {
        CHECK(calls[i].sequence == (uint64_t)i + 88 && calls[i].highest_megahertz == i + 89);
        CHECK(i == 0 || calls[i].received_nanoseconds >= calls[i - 1].received_nanoseconds);
    }
    CHECK(psim_clock_calls(node, 0, CALLS - 3, calls, 2, &count) == PSIM_OK && count == 2);
    CHECK(psim_clock_calls(node, 0, CALLS, calls, 2, &count) == PSIM_OK && count == 0);
    CHECK(psim_clock_calls(node, TEST_GPUS, 0, calls, 2, &count) == PSIM_ERROR_ARGUMENT);
    free(calls);
    CHECK(nvmlShutdown() == SUCCESS);
    psim_close(node);
}

static void the_energy_counter_moves_every_100_ms_only(void) {
    double begin = state_now();
    psim_node *node = make_node(state, (psim_config){0});
    CHECK(nvmlInit_v2() == SUCCESS);
    nvml_device handle = handle_of(0);
    unsigned long long now, before = 0;
    for (int moves = 0; moves < 4;) {
        CHECK(nvmlDeviceGetTotalEnergyConsumption(handle, &now) == SUCCESS && now >= before);
        if (now != before) {
            /* 50 W: each refresh adds 5 J, or a multiple when this process was not run in between. */
            CHECK(now - before >= 4999 && (now - before + 1) % 5000 <= 2);
            moves++;
        }
        before = now;
    }
    CHECK(state_now() - begin >= 0.4);
    CHECK(nvmlShutdown() == SUCCESS);
    psim_close(node);
}

static void a_call_takes_as_long_as_it_was_told(void) {
    psim_node *node = make_node(state, (psim_config){0});
    CHECK(nvmlInit_v2() == SUCCESS);
    psim_faults slow = {.slowdown = 1, .call_latency_seconds = 0.03};
    CHECK(psim_inject(node, 1, &slow) == PSIM_OK);
    nvml_device handle = handle_of(1);
    CHECK(nvmlDeviceSetGpuLockedClocks(handle, 900, 900) == SUCCESS);
    double end = state_now();
    /* The log says when the call came, not when the device was done. */
    psim_clock_call call;
    int count;
    CHECK(psim_clock_calls(node, 1, 0, &call, 1, &count) == PSIM_OK && count == 1);
    CHECK(end - (double)call.received_nanoseconds * 1e-9 >= 0.03);
    CHECK(nvmlShutdown() == SUCCESS);
    psim_close(node);
}

static void a_lost_gpu_is_lost_alone(void) {
    psim_node *node = make_node(state, (psim_config){0});
    CHECK(nvmlInit_v2() == SUCCESS);
    nvml_device lost = handle_of(0), well = handle_of(1);
    CHECK(nvmlDeviceSetGpuLockedClocks(lost, 900, 900) == SUCCESS);
    psim_faults gone = {.flags = PSIM_FAULT_LOST, .slowdown = 1};
    CHECK(psim_inject(node, 0, &gone) == PSIM_OK);
    unsigned int number;
    nvml_device again;
    CHECK(nvmlDeviceGetPowerUsage(lost, &number) == GPU_IS_LOST);
    CHECK(nvmlDeviceResetGpuLockedClocks(lost) == GPU_IS_LOST);
    CHECK(nvmlDeviceGetHandleByUUID("GPU-00000000", &again) == GPU_IS_LOST);
    CHECK(nvmlDeviceGetPowerUsage(well, &number) == SUCCESS && number == 50000);
    CHECK(nvmlDeviceSetGpuLockedClocks(well, 900, 900) == SUCCESS);
    CHECK(nvmlDeviceGetCount_v2(&number) == SUCCESS && number == TEST_GPUS);
    psim_client *client;
    CHECK(psim_client_open(node, 0, &client) == PSIM_ERROR_LOST);
    CHECK(nvmlShutdown() == SUCCESS);
    psim_close(node);
}

static void kernels_cost_what_the_profile_says_at_the_clock_in_force(void) {
    psim_node *node = make_node(state, (psim_config){.time_scale = 10});
    psim_client *client;
    psim_kernel kernel;
    CHECK(psim_client_open(node, 0, &client) == PSIM_OK);
    CHECK(psim_run(client, 0, FORWARD, &kernel) == PSIM_OK);
    CHECK_NEAR(kernel.simulated_seconds, 0.010);
    CHECK_NEAR(kernel.joules, 3.0);
    CHECK(psim_foreign_lock(node, 0, 705, 705) == PSIM_OK);
    CHECK(psim_run(client, 0, FORWARD, &kernel) == PSIM_OK);
    CHECK_NEAR(kernel.simulated_seconds, 0.020);
    CHECK_NEAR(kernel.mean_clock_megahertz, 705);
    CHECK(psim_run(client, 1, FORWARD, &kernel) == PSIM_ERROR_NO_ENTRY);
    CHECK(psim_run_fixed(client, NAN, 1, &kernel) == PSIM_ERROR_ARGUMENT);
    psim_client_close(client);
    psim_close(node);
}

static void a_table_with_one_clock_serves_every_clock(void) {
    psim_node *node = make_node(state, (psim_config){0});
    double seconds, joules;
    CHECK(psim_expected(node, 0, FORWARD, 2000, &seconds, &joules) == PSIM_OK);
    CHECK_NEAR(seconds, 0.010);
    CHECK(psim_expected(node, 0, FORWARD, 1, &seconds, &joules) == PSIM_OK);
    CHECK_NEAR(seconds, 0.020 * 705);
    CHECK(psim_expected(node, 0, FORWARD, 0, &seconds, &joules) == PSIM_ERROR_ARGUMENT);
    psim_close(node);
}

static void damaged_state_files_are_refused(void) {
    psim_close(make_node(state, (psim_config){0}));
    CHECK(truncate(state, 4096) == 0);
    psim_node *node;
    CHECK(psim_open(state, &node) == PSIM_ERROR_FORMAT);
    CHECK(truncate(state, 0) == 0);
    CHECK(psim_open(state, &node) == PSIM_ERROR_FORMAT);
    CHECK(nvmlInit_v2() == DRIVER_NOT_LOADED);
    psim_config config = {.gpus = PSIM_MAX_GPUS + 1};
    CHECK(psim_create(state, &config, NULL) == PSIM_ERROR_ARGUMENT);
    CHECK(psim_create("/nonexistent/state", &(psim_config){0}, NULL) == PSIM_ERROR_ARGUMENT);
}

static void more_clients_than_places_are_refused(void) {
    psim_node *node = make_node(state, (psim_config){0});
    psim_client *clients[PSIM_MAX_CLIENTS], *one_more;
    for (int i = 0; i < PSIM_MAX_CLIENTS; i++) CHECK(psim_client_open(node, 0, &clients[i]) == PSIM_OK);
    CHECK(psim_client_open(node, 0, &one_more) == PSIM_ERROR_FULL);
    psim_client_close(clients[3]);
    CHECK(psim_client_open(node, 0, &clients[3]) == PSIM_OK);
    for (int i = 0; i < PSIM_MAX_CLIENTS; i++) psim_client_close(clients[i]);
    CHECK(status_of(node, 0).clients == 0);
    psim_close(node);
}

#define TEST(function) {#function, function}
static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
    TEST(nothing_answers_before_init), /* first: it needs a process without NVML */
    TEST(init_answers_unknown_and_counts_its_users),
    TEST(null_and_bad_handles_are_invalid_arguments),
    TEST(texts_and_lists_that_do_not_fit_write_nothing_beyond),
    TEST(a_lock_outlives_the_process_that_set_it),
    TEST(success_means_requested_and_not_held),
    TEST(a_refused_call_changes_nothing_and_is_logged_with_its_code),
    TEST(the_call_log_keeps_the_newest_and_their_order),
    TEST(the_energy_counter_moves_every_100_ms_only),
    TEST(a_call_takes_as_long_as_it_was_told),
    TEST(a_lost_gpu_is_lost_alone),
    TEST(kernels_cost_what_the_profile_says_at_the_clock_in_force),
    TEST(a_table_with_one_clock_serves_every_clock),
    TEST(damaged_state_files_are_refused),
    TEST(more_clients_than_places_are_refused),
};

int main(int count, char **arguments) {
    if (count != 2) return 2;
    char path[4096];
    snprintf(path, sizeof path, "%s/unit-state", arguments[1]);
    state = path;
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        tests[i].run();
        printf("ok %s\n", tests[i].name);
        fflush(stdout);
    }
    unlink(path);
    return 0;
}
