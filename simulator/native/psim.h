/* The simulated node's own interface: creation, faults, observation, and the kernel launches of training processes.
 *
 * It lives in the same library as the simulated NVML (libnvidia-ml.so.1), so that whoever loads the one works on the
 * same device as the other. Times are seconds of CLOCK_MONOTONIC where a result names them so, and simulated seconds
 * everywhere else; the two differ by the node's time scale. */
#ifndef PSIM_H
#define PSIM_H

#include <stdint.h>

#define PSIM_API __attribute__((visibility("default")))

enum { PSIM_MAX_GPUS = 64, PSIM_MAX_CLIENTS = 16, PSIM_NAME_LENGTH = 96, PSIM_UUID_LENGTH = 48, PSIM_CALL_LOG = 512 };

/* Results of every function; negative results are errors. */
typedef enum {
    PSIM_OK = 0,
    PSIM_ERROR_ARGUMENT = -1,   /* a value out of range, an unknown GPU */
    PSIM_ERROR_SYSTEM = -2,     /* errno says why */
    PSIM_ERROR_FORMAT = -3,     /* not a state file, or one of another version */
    PSIM_ERROR_FULL = -4,       /* PSIM_MAX_CLIENTS processes have the GPU open */
    PSIM_ERROR_LOST = -5,       /* the GPU fell off the bus */
    PSIM_ERROR_NO_ENTRY = -6,   /* the profile does not hold this stage and instruction */
    PSIM_ERROR_CLOSED = -7      /* the client was closed, or belongs to the parent of a fork */
} psim_result;

/* Faults that are on or off; the others are numbers in psim_faults. */
typedef enum {
    PSIM_FAULT_LOST = 1 << 0,          /* every call on the GPU answers GPU_IS_LOST, kernels fail */
    PSIM_FAULT_NO_PERMISSION = 1 << 1, /* setting clocks answers NO_PERMISSION */
    PSIM_FAULT_NOT_SUPPORTED = 1 << 2, /* setting clocks answers NOT_SUPPORTED */
    PSIM_FAULT_UNKNOWN = 1 << 3,       /* setting clocks answers UNKNOWN */
    PSIM_FAULT_MIG = 1 << 4,           /* the GPU says it is in MIG mode */
    PSIM_FAULT_VGPU = 1 << 5,          /* the GPU says it is a virtual one */
    PSIM_FAULT_NO_MIG = 1 << 6,        /* asking for the MIG mode answers NOT_SUPPORTED, as a device that knows none */
    PSIM_FAULT_MPS = 1 << 7            /* the GPU's processes are clients of an MPS server */
} psim_fault;

typedef struct {
    uint32_t flags;               /* psim_fault bits */
    uint32_t reserved;
    double slowdown;              /* thermal: instructions take this many times as long; 1 is none */
    double power_cap_watts;       /* the clock is held down to keep below it; 0 is none */
    double call_latency_seconds;  /* real seconds that each NVML call on the GPU takes longer */
} psim_faults;

/* One row of the profile; rows of one (stage, instruction) follow one another, in order of falling clock. */
typedef struct {
    int32_t stage;
    int32_t instruction;      /* the instruction's letter of perseus_api */
    int32_t clock_megahertz;  /* 0: takes the time it takes at any clock */
    int32_t reserved;
    double seconds;
    double joules;
} psim_row;

typedef struct {
    int32_t gpus;
    int32_t administrators_only;  /* setting clocks needs CAP_SYS_ADMIN, as on a real driver */
    int32_t lowest_clock_megahertz;
    int32_t highest_clock_megahertz;
    int32_t clock_step_megahertz;
    int32_t rows;
    double blocking_watts;
    double idle_watts;
    double power_limit_watts;
    double clock_change_delay_seconds;
    double counter_refresh_seconds;
    double time_scale;            /* simulated seconds in a real second */
    double time_noise;            /* each kernel's time is off by a factor: its standard deviation */
    double power_noise;           /* the same for its power */
    double warm_up_seconds;       /* simulated time constant with which a chip warms after its first client came */
    double cold_share;            /* a cold chip draws this share less */
    uint64_t memory_bytes;
    char name[PSIM_NAME_LENGTH];
    char uuids[PSIM_MAX_GPUS][PSIM_UUID_LENGTH];
} psim_config;

/* How often NVML calls reached a GPU. */
typedef struct {
    uint64_t set_locked_clocks;    /* accepted */
    uint64_t reset_locked_clocks;  /* accepted */
    uint64_t refused;              /* set or reset calls that answered an error */
    uint64_t energy_reads;
    uint64_t reads;                /* every other query */
} psim_call_counts;

/* One NVML call that set or reset clocks, in the order in which the device took them. */
typedef struct {
    uint64_t sequence;              /* from 0, for each GPU */
    uint64_t received_nanoseconds;  /* CLOCK_MONOTONIC when the call entered the library */
    int32_t locked;                 /* 0: a reset */
    int32_t lowest_megahertz;
    int32_t highest_megahertz;
    int32_t result;                 /* NVML's */
} psim_clock_call;

typedef struct {
    char uuid[PSIM_UUID_LENGTH];
    int32_t index;
    int32_t locked;                /* the newest request, in force or about to be */
    int32_t locked_lowest_megahertz;
    int32_t locked_highest_megahertz;
    int32_t in_force_locked;       /* what holds now, while a newer request is still on its way */
    int32_t in_force_lowest_megahertz;
    int32_t in_force_highest_megahertz;
    int32_t held_clock_megahertz;  /* what nvmlDeviceGetClockInfo answers */
    int32_t clients;               /* living processes that have the GPU open */
    int32_t running;               /* kernels in progress */
    uint64_t event_reasons;        /* nvmlClocksEventReason bits */
    uint64_t clock_changes;        /* how often the range in force became another */
    uint64_t kernels;              /* kernels that ended */
    double energy_joules;          /* true energy, now */
    double published_joules;       /* what the counter shows */
    double power_watts;
    double temperature_celsius;
    double busy_seconds;           /* simulated seconds with a kernel in progress */
    double capped_seconds;         /* simulated seconds in which the power cap held the clock down */
    double hot_seconds;            /* simulated seconds in which heat slowed the device */
    psim_faults faults;
    psim_call_counts calls;
} psim_gpu_status;

typedef struct {
    double begin_seconds;  /* CLOCK_MONOTONIC */
    double end_seconds;    /* CLOCK_MONOTONIC: when the simulated device was done, a little before the call returns */
    double simulated_seconds;
    double joules;
    double mean_clock_megahertz;  /* weighted by time; 0 for fixed work */
} psim_kernel;

typedef struct psim_node psim_node;
typedef struct psim_client psim_client;

/* The node. psim_create writes a new state file and puts it in place at once (rename). */
PSIM_API int psim_create(const char *path, const psim_config *config, const psim_row *rows);
PSIM_API int psim_open(const char *path, psim_node **node);
PSIM_API void psim_close(psim_node *node);
PSIM_API int psim_read_config(psim_node *node, psim_config *config);
PSIM_API int psim_status(psim_node *node, int gpu, psim_gpu_status *status);
PSIM_API int psim_read_init_fault(psim_node *node);
/* The GPU's clock calls from a sequence number on, oldest first; those older than PSIM_CALL_LOG calls are forgotten. */
PSIM_API int psim_clock_calls(psim_node *node, int gpu, uint64_t from, psim_clock_call *calls, int space, int *count);

/* Faults. psim_inject replaces all faults of a GPU; psim_foreign_lock acts as somebody else's program would. */
PSIM_API int psim_inject(psim_node *node, int gpu, const psim_faults *faults);
PSIM_API int psim_inject_init_unknown(psim_node *node, int on);
PSIM_API int psim_foreign_lock(psim_node *node, int gpu, int lowest_megahertz, int highest_megahertz);
PSIM_API int psim_foreign_reset(psim_node *node, int gpu);

/* Kernels. One client for each process and GPU; it draws the blocking power between kernels. The calls block for as
 * long as the device takes at the clock in force, and may be made from any thread (two at once share the device). */
PSIM_API int psim_client_open(psim_node *node, int gpu, psim_client **client);
PSIM_API void psim_client_close(psim_client *client);
PSIM_API int psim_run(psim_client *client, int stage, int instruction, psim_kernel *kernel);
PSIM_API int psim_run_fixed(psim_client *client, double seconds, double watts, psim_kernel *kernel);
PSIM_API int psim_expected(psim_node *node, int stage, int instruction, int clock_megahertz, double *seconds,
                           double *joules);

PSIM_API const char *psim_error_string(int result);

#endif
