//! One suite for every container runtime: what callers may rely on, whoever runs the containers.
//!
//! Owns: the list of cases and the runtimes each is run against. A case is a function of a [`harness::Bench`]; it knows
//! no runtime by name. A new runtime implements [`harness::Harness`] and gets a line in `suite!`. A case that a runtime
//! cannot meet is exempted there and only there, with the reason as text, which `cargo test` prints.
//! Needs root for real containers, `dockerd` for the docker runtime and `containerd` for the CRI runtime (without them
//! those are skipped, except under `CI`); they run the built-in image, so nothing else is needed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod conformance {
    pub mod archives;
    pub mod containerd;
    pub mod containers;
    pub mod cri;
    mod cri_only;
    pub mod docker;
    mod docker_only;
    pub mod engine;
    pub mod exec;
    pub mod harness;
    pub mod host_ports;
    pub mod images;
    pub mod logs;
    pub mod native;
    pub mod propagation;
    pub mod registry;
    pub mod restarts;
    pub mod sandboxes;
    pub mod sharing;
    pub mod sim;
    pub mod stats;
    pub mod stopping;
    pub mod streams;
    pub mod users;
}

use conformance::{
    containers, exec, harness::Bench, host_ports, images, logs, propagation, restarts, sandboxes, sharing,
    stats, stopping, streams, users,
};

/// Makes each case a test of each runtime: `native::containers::…`, `sim::containers::…`.
macro_rules! suite {
    ($($room:ident { $($case:ident $(, sim exempt: $why:literal)? $(, docker exempt: $docker:literal)?
        $(, cri exempt: $cri:literal)?;)* })*) => {
        mod native {
            $(mod $room {
                $(#[tokio::test]
                async fn $case() {
                    crate::$room::$case(&mut crate::Bench::<crate::conformance::native::Native>::new().await).await;
                })*
            })*
        }
        mod docker {
            $(mod $room {
                $(#[tokio::test]
                $(#[ignore = $docker])?
                async fn $case() {
                    if crate::conformance::engine::at_hand() {
                        crate::$room::$case(&mut crate::Bench::<crate::conformance::docker::OnDocker>::new().await).await;
                    }
                })*
            })*
        }
        mod cri {
            $(mod $room {
                $(#[tokio::test]
                $(#[ignore = $cri])?
                async fn $case() {
                    if crate::conformance::containerd::at_hand() {
                        crate::$room::$case(&mut crate::Bench::<crate::conformance::cri::OnContainerd>::new().await).await;
                    }
                })*
            })*
        }
        mod sim {
            $(mod $room {
                $(#[tokio::test]
                $(#[ignore = $why])?
                async fn $case() {
                    crate::$room::$case(&mut crate::Bench::<crate::conformance::sim::Sim>::new().await).await;
                })*
            })*
        }
    };
}

suite! {
    sandboxes {
        a_sandbox_is_ready_and_listed_with_an_address_of_its_own;
        running_a_ready_sandbox_again_gives_the_same_one;
        a_sandbox_on_the_hosts_network_has_no_address;
        addresses_run_out_with_a_clear_error_and_come_back;
        no_address_is_given_before_the_node_has_a_subnet;
        what_is_no_subnet_is_refused;
        a_stopped_sandbox_is_not_ready_and_takes_no_containers;
        a_stopped_sandbox_can_be_run_again;
        stopping_a_sandbox_ends_its_containers_and_keeps_their_exits;
        removing_a_sandbox_forgets_its_containers;
        ending_sandboxes_is_idempotent_also_for_unknown_ones;
        a_lost_sandbox_is_told_and_its_containers_can_be_ended;
    }
    containers {
        a_running_container_is_resized, sim exempt: "simulated containers have no cgroups to look at";
        only_running_containers_are_resized;
        a_pods_share_is_what_it_is_said_to_be,
            sim exempt: "simulated containers have no cgroups to look at",
            docker exempt: "the engine's containers are in no group of their pod's";
        a_container_is_created_then_runs_then_has_exited;
        exit_codes_are_told_by_event_and_listing_alike;
        an_exit_is_told_once_to_every_listener;
        a_program_that_a_signal_ends_says_which;
        a_program_killed_from_outside_is_told_as_killed;
        lives_of_one_container_have_ids_and_attempts_of_their_own;
        a_command_that_does_not_exist_is_a_start_error_that_names_it;
        an_image_that_is_not_here_is_named_and_leaves_no_container;
        running_as_root_is_refused_when_asked_to;
        a_container_is_started_once;
        the_containers_of_one_pod_are_listed_alone;
        unknown_containers_and_sandboxes_are_not_found;
        arguments_environment_directory_and_host_name_reach_the_program;
        output_is_logged_by_stream_in_order;
        a_second_life_appends_to_the_log_it_is_given;
    }
    stopping {
        a_polite_program_ends_by_itself_within_its_grace;
        a_stubborn_program_is_killed_after_its_grace;
        no_grace_kills_at_once;
        stopping_what_has_ended_or_never_was_is_no_error;
        a_container_never_started_can_be_stopped_and_removed;
        removing_a_running_container_kills_it;
        an_exit_stays_readable_until_removal;
        two_stops_at_once_both_return;
        a_program_is_asked_to_end_by_the_signal_of_its_container_or_image,
            sim exempt: "simulated programs do not tell signals apart";
    }
    exec {
        a_programs_output_and_exit_code_are_told;
        a_program_ended_by_a_signal_has_its_code;
        a_program_that_does_not_exist_is_a_start_error;
        a_program_over_its_time_is_killed_and_its_container_lives;
        what_a_program_over_its_time_said_is_told,
            cri exempt: "the interface tells no output of a program whose time was up";
        many_programs_run_at_once;
        output_beyond_the_bound_is_dropped;
        in_a_container_that_does_not_run_nothing_is_run;
        the_end_of_its_container_ends_a_program;
        a_program_runs_as_its_container_does,
            sim exempt: "simulated programs know nothing of their container";
        after_a_restart_programs_run_in_the_containers_found;
        a_program_with_streams_says_what_it_has_to_say_and_how_it_ended;
        a_program_with_streams_is_seen_whole_or_its_end_says_that_it_is_not;
    }
    streams {
        a_program_reads_what_is_typed_until_its_end,
            sim exempt: "simulated programs read nothing and have no terminals";
        a_terminal_has_a_name_and_the_size_of_the_users,
            sim exempt: "simulated programs read nothing and have no terminals";
        an_interrupt_on_a_terminal_reaches_the_foreground_program,
            sim exempt: "simulated programs read nothing and have no terminals";
        what_a_user_leaves_on_a_terminal_is_hung_up,
            sim exempt: "simulated programs read nothing and have no terminals";
        a_terminal_for_a_program_that_does_not_exist_is_an_error,
            sim exempt: "simulated programs read nothing and have no terminals";
        who_attaches_talks_with_the_program_itself,
            sim exempt: "simulated programs read nothing and have no terminals";
        input_for_once_ends_with_who_had_it,
            sim exempt: "simulated programs read nothing and have no terminals";
        input_that_ends_at_once_has_come_and_ended,
            sim exempt: "simulated programs read nothing and have no terminals";
        a_container_has_a_terminal_when_it_asks_for_one,
            sim exempt: "simulated programs read nothing and have no terminals";
        who_does_not_listen_holds_up_nobody,
            sim exempt: "simulated programs read nothing and have no terminals",
            cri exempt: "a CRI runtime copies to those who attach by itself, and waits for the slowest";
        a_port_of_a_pod_is_reached_from_inside,
            sim exempt: "simulated containers have no sockets";
    }
    host_ports {
        a_port_of_the_machine_leads_to_a_pod_also_after_a_restart,
            sim exempt: "simulated pods have addresses that nothing reaches";
    }
    restarts {
        running_containers_are_found_with_the_same_process;
        what_ended_while_nobody_drove_is_found_with_its_code;
        a_container_created_before_can_be_started_after;
        addresses_in_use_are_not_given_out_again;
        an_adopted_container_is_heard_and_can_be_stopped;
        images_are_still_here;
        sandboxes_removed_before_are_not_found_after;
    }
    logs {
        a_flood_is_rotated_within_its_limits_and_holds_up_nobody,
            cri exempt: "a CRI runtime writes its logs, and the kubelet rotates them every now and then";
        a_flood_is_followed_without_a_gap,
            cri exempt: "a CRI runtime writes its logs, and the kubelet rotates them every now and then";
        a_log_goes_on_within_its_limits_after_a_restart,
            cri exempt: "a CRI runtime writes its logs, and the kubelet rotates them every now and then";
        a_last_line_without_an_end_is_whole_however_long,
            sim exempt: "simulated programs write no files";
    }
    stats {
        what_a_running_container_uses_is_told_for_it_and_its_pod;
        what_has_ended_is_not_told_of;
        a_writable_layer_is_measured,
            sim exempt: "simulated containers have no file system";
        what_a_container_writes_to_the_disk_is_counted,
            sim exempt: "simulated containers have no file system";
        no_pod_counter_falls_when_one_of_two_containers_ends,
            sim exempt: "simulated containers have no file system and no network";
    }
    sharing {
        containers_of_a_pod_share_the_host_name;
        containers_of_a_pod_reach_each_other_on_loopback,
            sim exempt: "simulated containers have no sockets";
        pods_reach_each_other_by_address,
            sim exempt: "simulated containers have no sockets";
        containers_that_share_a_pid_namespace_see_each_other,
            sim exempt: "simulated containers have no processes";
        containers_of_a_pod_share_memory,
            sim exempt: "simulated containers have no /dev/shm";
        containers_of_a_pod_share_a_directory,
            sim exempt: "simulated containers have no file system";
        a_read_only_mount_cannot_be_written,
            sim exempt: "simulated containers have no file system";
        what_is_mounted_below_a_read_only_mount_is_read_only_where_that_is_asked_for,
            sim exempt: "simulated containers have no file system";
        root_file_systems_are_not_shared,
            sim exempt: "simulated containers have no file system";
        last_words_are_left_on_the_node,
            sim exempt: "simulated containers have no file system";
        the_pods_files_are_where_links_of_the_image_lead,
            sim exempt: "simulated containers have no file system";
        what_cannot_be_mounted_is_named_with_its_place,
            sim exempt: "simulated containers have no file system";
    }
    propagation {
        later_mounts_appear_on_the_other_side_where_that_was_asked_for,
            sim exempt: "simulated containers have no file system";
        what_the_node_does_not_share_is_refused,
            sim exempt: "simulated containers have no file system";
    }
    users {
        root_in_a_pod_with_users_of_its_own_is_not_the_nodes,
            sim exempt: "simulated programs are run by nobody";
        containers_with_users_of_their_own_share_a_pid_namespace,
            sim exempt: "simulated programs are run by nobody";
        sysctls_of_a_pod_with_users_of_its_own_are_its_roots,
            sim exempt: "simulated programs are run by nobody";
        the_user_of_an_image_has_the_groups_that_the_image_says,
            sim exempt: "simulated programs are run by nobody";
    }
    images {
        a_docker_archive_is_loaded_listed_and_removed;
        an_oci_layout_is_loaded;
        a_compressed_archive_is_loaded;
        a_root_file_system_is_imported;
        rename_names_the_only_image;
        two_names_of_an_image_go_one_by_one;
        what_is_no_archive_is_refused_and_changes_nothing;
        archives_that_lead_out_of_their_root_are_refused;
        saved_images_come_back_under_the_same_ids,
            sim exempt: "simulated images have names only, no content",
            cri exempt: "the interface gives no images away";
        only_images_that_are_here_are_saved,
            sim exempt: "simulated images have names only, no content",
            cri exempt: "the interface gives no images away";
        an_image_that_was_brought_is_given_part_by_part,
            sim exempt: "simulated images have names only, no content",
            cri exempt: "the interface gives no images away";
        an_image_is_taken_part_by_part_and_known_for_a_copy,
            sim exempt: "simulated images have names only, no content";
        parts_that_are_not_what_was_asked_for_leave_nothing,
            sim exempt: "simulated images have names only, no content";
        names_that_are_none_are_refused;
        what_no_registry_has_is_not_pulled;
        a_pulled_image_goes_by_its_registrys_digest,
            sim exempt: "nothing is fetched for simulated images";
        a_running_container_keeps_its_image;
        where_images_are_is_told,
            sim exempt: "simulated images are nowhere";
    }
}
