//! Messages of the Container Runtime Interface, version 1, and of containerd's own services.
//!
//! Owns: names and numbers, of the fields that are used only: what else a runtime sends is skipped. Source: Kubernetes'
//! `cri-api/pkg/apis/runtime/v1/api.proto` and containerd's `api/services/*/v1`. Written by hand, so that a build needs
//! no compiler for protocol buffers.

#![allow(missing_docs, reason = "the fields are named and described in the interface's own definition")]

use std::collections::HashMap;

pub(super) mod mode {
    //! `NamespaceMode`.
    pub const POD: i32 = 0;
    pub const CONTAINER: i32 = 1;
    pub const NODE: i32 = 2;
    pub const TARGET: i32 = 3;
}

pub(super) mod state {
    //! `PodSandboxState` and `ContainerState`.
    pub const SANDBOX_READY: i32 = 0;
    #[cfg(test)]
    pub const CREATED: i32 = 0;
    pub const RUNNING: i32 = 1;
    pub const EXITED: i32 = 2;
}

pub(super) mod profile {
    //! `SecurityProfile.ProfileType`.
    pub const RUNTIME_DEFAULT: i32 = 0;
    pub const UNCONFINED: i32 = 1;
    pub const LOCALHOST: i32 = 2;
}

/// Declares messages: `name: kind = number`, with `prost`'s words for kinds.
macro_rules! messages {
    ($($(#[$note:meta])* $message:ident { $($field:ident: $type:ty = [$($kind:tt)*]),* $(,)? })*) => {
        $(
            $(#[$note])*
            #[derive(Clone, PartialEq, prost::Message)]
            pub(super) struct $message { $(#[prost($($kind)*)] pub $field: $type),* }
        )*
    };
}

type Map = HashMap<String, String>;

messages! {
    Empty {}
    VersionRequest { version: String = [string, tag = "1"] }
    VersionResponse {
        runtime_name: String = [string, tag = "2"],
        runtime_version: String = [string, tag = "3"],
    }
    StatusRequest { verbose: bool = [bool, tag = "1"] }
    StatusResponse {
        status: Option<RuntimeStatus> = [message, optional, tag = "1"],
        info: Map = [map = "string, string", tag = "2"],
        runtime_handlers: Vec<RuntimeHandler> = [message, repeated, tag = "3"],
    }
    RuntimeHandler {
        name: String = [string, tag = "1"],
        features: Option<RuntimeHandlerFeatures> = [message, optional, tag = "2"],
    }
    RuntimeHandlerFeatures { recursive_read_only_mounts: bool = [bool, tag = "1"] }
    RuntimeStatus { conditions: Vec<RuntimeCondition> = [message, repeated, tag = "1"] }
    RuntimeCondition {
        kind: String = [string, tag = "1"],
        status: bool = [bool, tag = "2"],
        reason: String = [string, tag = "3"],
        message: String = [string, tag = "4"],
    }
    UpdateRuntimeConfigRequest { runtime_config: Option<RuntimeConfig> = [message, optional, tag = "1"] }
    RuntimeConfig { network_config: Option<NetworkConfig> = [message, optional, tag = "1"] }
    NetworkConfig { pod_cidr: String = [string, tag = "1"] }

    DnsConfig {
        servers: Vec<String> = [string, repeated, tag = "1"],
        searches: Vec<String> = [string, repeated, tag = "2"],
        options: Vec<String> = [string, repeated, tag = "3"],
    }
    NamespaceOption {
        network: i32 = [int32, tag = "1"],
        pid: i32 = [int32, tag = "2"],
        ipc: i32 = [int32, tag = "3"],
        target_id: String = [string, tag = "4"],
    }
    Int64Value { value: i64 = [int64, tag = "1"] }
    UInt64Value { value: u64 = [uint64, tag = "1"] }
    SecurityProfile {
        profile_type: i32 = [int32, tag = "1"],
        localhost_ref: String = [string, tag = "2"],
    }
    LinuxSandboxSecurityContext {
        namespace_options: Option<NamespaceOption> = [message, optional, tag = "1"],
        readonly_rootfs: bool = [bool, tag = "4"],
        privileged: bool = [bool, tag = "6"],
        seccomp: Option<SecurityProfile> = [message, optional, tag = "9"],
    }
    LinuxPodSandboxConfig {
        cgroup_parent: String = [string, tag = "1"],
        security_context: Option<LinuxSandboxSecurityContext> = [message, optional, tag = "2"],
        sysctls: Map = [map = "string, string", tag = "3"],
    }
    PodSandboxMetadata {
        name: String = [string, tag = "1"],
        uid: String = [string, tag = "2"],
        namespace: String = [string, tag = "3"],
        attempt: u32 = [uint32, tag = "4"],
    }
    PodSandboxConfig {
        metadata: Option<PodSandboxMetadata> = [message, optional, tag = "1"],
        hostname: String = [string, tag = "2"],
        log_directory: String = [string, tag = "3"],
        dns_config: Option<DnsConfig> = [message, optional, tag = "4"],
        labels: Map = [map = "string, string", tag = "6"],
        annotations: Map = [map = "string, string", tag = "7"],
        linux: Option<LinuxPodSandboxConfig> = [message, optional, tag = "8"],
    }
    RunPodSandboxRequest { config: Option<PodSandboxConfig> = [message, optional, tag = "1"] }
    /// Also `StopPodSandboxRequest`, `RemovePodSandboxRequest` and the response to `RunPodSandboxRequest`.
    PodSandboxId { pod_sandbox_id: String = [string, tag = "1"] }
    PodSandboxStatusRequest {
        pod_sandbox_id: String = [string, tag = "1"],
        verbose: bool = [bool, tag = "2"],
    }
    PodSandboxStatusResponse {
        status: Option<PodSandboxStatus> = [message, optional, tag = "1"],
        info: Map = [map = "string, string", tag = "2"],
    }
    PodSandboxStatus {
        id: String = [string, tag = "1"],
        state: i32 = [int32, tag = "3"],
        network: Option<PodSandboxNetworkStatus> = [message, optional, tag = "5"],
    }
    PodSandboxNetworkStatus { ip: String = [string, tag = "1"] }
    /// `PodSandboxFilter` and `ContainerFilter`, by labels alone.
    PodSandboxFilter { label_selector: Map = [map = "string, string", tag = "3"] }
    ContainerFilter { label_selector: Map = [map = "string, string", tag = "4"] }
    ListPodSandboxRequest { filter: Option<PodSandboxFilter> = [message, optional, tag = "1"] }
    ListPodSandboxResponse { items: Vec<PodSandbox> = [message, repeated, tag = "1"] }
    PodSandbox {
        id: String = [string, tag = "1"],
        metadata: Option<PodSandboxMetadata> = [message, optional, tag = "2"],
        state: i32 = [int32, tag = "3"],
        created_at: i64 = [int64, tag = "4"],
        labels: Map = [map = "string, string", tag = "5"],
        annotations: Map = [map = "string, string", tag = "6"],
    }

    ImageSpec { image: String = [string, tag = "1"] }
    KeyValue { key: String = [string, tag = "1"], value: String = [string, tag = "2"] }
    Mount {
        container_path: String = [string, tag = "1"],
        host_path: String = [string, tag = "2"],
        readonly: bool = [bool, tag = "3"],
        propagation: i32 = [int32, tag = "5"],
        recursive_read_only: bool = [bool, tag = "8"],
    }
    HugepageLimit { page_size: String = [string, tag = "1"], limit: u64 = [uint64, tag = "2"] }
    LinuxContainerResources {
        cpu_period: i64 = [int64, tag = "1"],
        cpu_quota: i64 = [int64, tag = "2"],
        cpu_shares: i64 = [int64, tag = "3"],
        memory_limit_in_bytes: i64 = [int64, tag = "4"],
        oom_score_adj: i64 = [int64, tag = "5"],
        hugepage_limits: Vec<HugepageLimit> = [message, repeated, tag = "8"],
        unified: Map = [map = "string, string", tag = "9"],
        memory_swap_limit_in_bytes: i64 = [int64, tag = "10"],
    }
    Capability {
        add_capabilities: Vec<String> = [string, repeated, tag = "1"],
        drop_capabilities: Vec<String> = [string, repeated, tag = "2"],
    }
    LinuxContainerSecurityContext {
        capabilities: Option<Capability> = [message, optional, tag = "1"],
        privileged: bool = [bool, tag = "2"],
        namespace_options: Option<NamespaceOption> = [message, optional, tag = "3"],
        run_as_user: Option<Int64Value> = [message, optional, tag = "5"],
        run_as_username: String = [string, tag = "6"],
        readonly_rootfs: bool = [bool, tag = "7"],
        supplemental_groups: Vec<i64> = [int64, repeated, tag = "8"],
        no_new_privs: bool = [bool, tag = "11"],
        run_as_group: Option<Int64Value> = [message, optional, tag = "12"],
        masked_paths: Vec<String> = [string, repeated, tag = "13"],
        readonly_paths: Vec<String> = [string, repeated, tag = "14"],
        seccomp: Option<SecurityProfile> = [message, optional, tag = "15"],
    }
    LinuxContainerConfig {
        resources: Option<LinuxContainerResources> = [message, optional, tag = "1"],
        security_context: Option<LinuxContainerSecurityContext> = [message, optional, tag = "2"],
    }
    ContainerMetadata { name: String = [string, tag = "1"], attempt: u32 = [uint32, tag = "2"] }
    ContainerConfig {
        metadata: Option<ContainerMetadata> = [message, optional, tag = "1"],
        image: Option<ImageSpec> = [message, optional, tag = "2"],
        command: Vec<String> = [string, repeated, tag = "3"],
        args: Vec<String> = [string, repeated, tag = "4"],
        working_dir: String = [string, tag = "5"],
        envs: Vec<KeyValue> = [message, repeated, tag = "6"],
        mounts: Vec<Mount> = [message, repeated, tag = "7"],
        labels: Map = [map = "string, string", tag = "9"],
        annotations: Map = [map = "string, string", tag = "10"],
        log_path: String = [string, tag = "11"],
        stdin: bool = [bool, tag = "12"],
        stdin_once: bool = [bool, tag = "13"],
        tty: bool = [bool, tag = "14"],
        linux: Option<LinuxContainerConfig> = [message, optional, tag = "15"],
    }
    CreateContainerRequest {
        pod_sandbox_id: String = [string, tag = "1"],
        config: Option<ContainerConfig> = [message, optional, tag = "2"],
        sandbox_config: Option<PodSandboxConfig> = [message, optional, tag = "3"],
    }
    /// `StartContainerRequest`, `RemoveContainerRequest`, `ReopenContainerLogRequest`, and the response to
    /// `CreateContainerRequest`.
    ContainerId { container_id: String = [string, tag = "1"] }
    StopContainerRequest { container_id: String = [string, tag = "1"], timeout: i64 = [int64, tag = "2"] }
    UpdateContainerResourcesRequest {
        container_id: String = [string, tag = "1"],
        linux: Option<LinuxContainerResources> = [message, optional, tag = "2"],
    }
    ListContainersRequest { filter: Option<ContainerFilter> = [message, optional, tag = "1"] }
    ListContainersResponse { containers: Vec<Container> = [message, repeated, tag = "1"] }
    Container {
        id: String = [string, tag = "1"],
        pod_sandbox_id: String = [string, tag = "2"],
        metadata: Option<ContainerMetadata> = [message, optional, tag = "3"],
        image: Option<ImageSpec> = [message, optional, tag = "4"],
        image_ref: String = [string, tag = "5"],
        state: i32 = [int32, tag = "6"],
        labels: Map = [map = "string, string", tag = "8"],
        annotations: Map = [map = "string, string", tag = "9"],
    }
    ContainerStatusRequest { container_id: String = [string, tag = "1"], verbose: bool = [bool, tag = "2"] }
    ContainerStatusResponse {
        status: Option<ContainerStatus> = [message, optional, tag = "1"],
        info: Map = [map = "string, string", tag = "2"],
    }
    ContainerStatus {
        id: String = [string, tag = "1"],
        state: i32 = [int32, tag = "3"],
        started_at: i64 = [int64, tag = "5"],
        finished_at: i64 = [int64, tag = "6"],
        exit_code: i32 = [int32, tag = "7"],
        image_ref: String = [string, tag = "9"],
        reason: String = [string, tag = "10"],
        message: String = [string, tag = "11"],
        labels: Map = [map = "string, string", tag = "12"],
        annotations: Map = [map = "string, string", tag = "13"],
    }
    ExecSyncRequest {
        container_id: String = [string, tag = "1"],
        cmd: Vec<String> = [string, repeated, tag = "2"],
        timeout: i64 = [int64, tag = "3"],
    }
    ExecSyncResponse {
        stdout: Vec<u8> = [bytes = "vec", tag = "1"],
        stderr: Vec<u8> = [bytes = "vec", tag = "2"],
        exit_code: i32 = [int32, tag = "3"],
    }
    ExecRequest {
        container_id: String = [string, tag = "1"],
        cmd: Vec<String> = [string, repeated, tag = "2"],
        tty: bool = [bool, tag = "3"],
        stdin: bool = [bool, tag = "4"],
        stdout: bool = [bool, tag = "5"],
        stderr: bool = [bool, tag = "6"],
    }
    AttachRequest {
        container_id: String = [string, tag = "1"],
        stdin: bool = [bool, tag = "2"],
        tty: bool = [bool, tag = "3"],
        stdout: bool = [bool, tag = "4"],
        stderr: bool = [bool, tag = "5"],
    }
    /// `ExecResponse` and `AttachResponse`.
    StreamUrl { url: String = [string, tag = "1"] }

    Image {
        id: String = [string, tag = "1"],
        repo_tags: Vec<String> = [string, repeated, tag = "2"],
        repo_digests: Vec<String> = [string, repeated, tag = "3"],
        size: u64 = [uint64, tag = "4"],
        uid: Option<Int64Value> = [message, optional, tag = "5"],
        username: String = [string, tag = "6"],
    }
    /// containerd's, by `container_id`.
    ListPidsResponse { processes: Vec<ProcessInfo> = [message, repeated, tag = "1"] }
    ProcessInfo { info: Option<Any> = [message, optional, tag = "2"] }
    ProcessDetails { exec_id: String = [string, tag = "1"] }
    KillRequest {
        container_id: String = [string, tag = "1"],
        exec_id: String = [string, tag = "2"],
        signal: u32 = [uint32, tag = "3"],
        all: bool = [bool, tag = "4"],
    }

    ListImagesResponse { images: Vec<Image> = [message, repeated, tag = "1"] }
    ImageStatusRequest {
        image: Option<ImageSpec> = [message, optional, tag = "1"],
        verbose: bool = [bool, tag = "2"],
    }
    ImageStatusResponse {
        image: Option<Image> = [message, optional, tag = "1"],
        info: Map = [map = "string, string", tag = "2"],
    }
    AuthConfig {
        username: String = [string, tag = "1"],
        password: String = [string, tag = "2"],
        registry_token: String = [string, tag = "6"],
    }
    PullImageRequest {
        image: Option<ImageSpec> = [message, optional, tag = "1"],
        auth: Option<AuthConfig> = [message, optional, tag = "2"],
    }
    RemoveImageRequest { image: Option<ImageSpec> = [message, optional, tag = "1"] }

    ListContainerStatsRequest { filter: Option<ContainerStatsFilter> = [message, optional, tag = "1"] }
    ContainerStatsFilter { label_selector: Map = [map = "string, string", tag = "3"] }
    ListContainerStatsResponse { stats: Vec<ContainerStats> = [message, repeated, tag = "1"] }
    ContainerAttributes { id: String = [string, tag = "1"] }
    ContainerStats {
        attributes: Option<ContainerAttributes> = [message, optional, tag = "1"],
        cpu: Option<CpuUsage> = [message, optional, tag = "2"],
        memory: Option<MemoryUsage> = [message, optional, tag = "3"],
        writable_layer: Option<FilesystemUsage> = [message, optional, tag = "4"],
    }
    CpuUsage { usage_core_nano_seconds: Option<UInt64Value> = [message, optional, tag = "2"] }
    MemoryUsage {
        working_set_bytes: Option<UInt64Value> = [message, optional, tag = "2"],
        usage_bytes: Option<UInt64Value> = [message, optional, tag = "4"],
        rss_bytes: Option<UInt64Value> = [message, optional, tag = "5"],
    }
    ImageFsInfoResponse {
        image_filesystems: Vec<FilesystemUsage> = [message, repeated, tag = "1"],
        container_filesystems: Vec<FilesystemUsage> = [message, repeated, tag = "2"],
    }
    FilesystemIdentifier { mountpoint: String = [string, tag = "1"] }
    FilesystemUsage {
        fs_id: Option<FilesystemIdentifier> = [message, optional, tag = "2"],
        used_bytes: Option<UInt64Value> = [message, optional, tag = "3"],
        inodes_used: Option<UInt64Value> = [message, optional, tag = "4"],
    }
    ListPodSandboxStatsRequest { filter: Option<PodSandboxStatsFilter> = [message, optional, tag = "1"] }
    PodSandboxStatsFilter { label_selector: Map = [map = "string, string", tag = "2"] }
    PodSandboxStatsRequest { pod_sandbox_id: String = [string, tag = "1"] }
    PodSandboxStatsResponse { stats: Option<PodSandboxStats> = [message, optional, tag = "1"] }
    ListPodSandboxStatsResponse { stats: Vec<PodSandboxStats> = [message, repeated, tag = "1"] }
    PodSandboxStats {
        attributes: Option<ContainerAttributes> = [message, optional, tag = "1"],
        linux: Option<LinuxPodSandboxStats> = [message, optional, tag = "2"],
    }
    LinuxPodSandboxStats {
        cpu: Option<CpuUsage> = [message, optional, tag = "1"],
        memory: Option<MemoryUsage> = [message, optional, tag = "2"],
        network: Option<NetworkUsage> = [message, optional, tag = "3"],
        process: Option<ProcessUsage> = [message, optional, tag = "4"],
    }
    NetworkUsage { default_interface: Option<NetworkInterfaceUsage> = [message, optional, tag = "2"] }
    NetworkInterfaceUsage {
        rx_bytes: Option<UInt64Value> = [message, optional, tag = "2"],
        tx_bytes: Option<UInt64Value> = [message, optional, tag = "4"],
    }
    ProcessUsage { process_count: Option<UInt64Value> = [message, optional, tag = "2"] }

    /// containerd's `images.v1`: a name for content.
    NamedImage {
        name: String = [string, tag = "1"],
        labels: Map = [map = "string, string", tag = "2"],
        target: Option<Descriptor> = [message, optional, tag = "3"],
    }
    Descriptor {
        media_type: String = [string, tag = "1"],
        digest: String = [string, tag = "2"],
        size: i64 = [int64, tag = "3"],
    }
    /// `GetImageRequest`.
    ImageName { name: String = [string, tag = "1"] }
    DeleteImageRequest { name: String = [string, tag = "1"], sync: bool = [bool, tag = "2"] }
    /// `CreateImageRequest`, `UpdateImageRequest`, and the responses of `Get`, `Create` and `Update`.
    ImageRecord { image: Option<NamedImage> = [message, optional, tag = "1"] }
    /// containerd's `events.v1`.
    SubscribeRequest { filters: Vec<String> = [string, repeated, tag = "1"] }
    Envelope { topic: String = [string, tag = "3"], event: Option<Any> = [message, optional, tag = "4"] }
    Any { value: Vec<u8> = [bytes = "vec", tag = "2"] }
    /// `id` is another than the container's when the program was run in it.
    TaskExit { container_id: String = [string, tag = "1"], id: String = [string, tag = "2"] }
    /// Of the interface itself, from Kubernetes 1.26 on.
    ContainerEventResponse { container_id: String = [string, tag = "1"] }
}
